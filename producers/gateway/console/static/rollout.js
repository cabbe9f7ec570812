// Which versions serve whom, what the trial of a candidate has shown, and the levers.

import { Failure, get, post } from "./api.js";
import { checks } from "./checks.js";
import { confirm, toast } from "./dialogs.js";
import {
  badge, definitions, duration, field, h, moment, number, options, percent, poller, table,
} from "./dom.js";

const VERDICTS = { promote: "ok", hold: "muted", rollback: "bad" };
const UNITS = [["user"], ["tenant"], ["conversation"]];

function arms(figures) {
  const cells = (name, cell) => h("tr", {}, h("th", { scope: "row" }, name),
    h("td", { class: "num" }, cell(figures.stable)), h("td", { class: "num" }, cell(figures.candidate)));
  const failed = (arm) => `${number(arm.errors)}`
    + (arm.requests ? ` (${percent(arm.errors / arm.requests)})` : "");
  return [
    h("table", { class: "inner arms" },
      h("thead", {}, h("tr", {}, h("th", {}), h("th", { scope: "col", class: "num" },
        `stable ${figures.stable.version}`), h("th", { scope: "col", class: "num" },
        `candidate ${figures.candidate.version}`))),
      h("tbody", {},
        cells("Requests", (arm) => number(arm.requests)),
        cells("Failed", failed),
        cells("Rated answers / units", (arm) => `${number(arm.labels)} / ${number(arm.units)}`),
        cells("Up / down", (arm) => `${number(arm.ups)} / ${number(arm.downs)}`),
        cells("Outcome", (arm) => percent(arm.outcome)),
        cells("Edits", (arm) => number(arm.edits)),
        cells("Tokens of an answer", (arm) => number(arm.output_tokens, 1)),
        cells("Time to first token", (arm) => duration(arm.ttft_ms)),
        cells("Time between tokens", (arm) => duration(arm.itl_ms)))),
    h("div", {},
      h("p", {}, badge(VERDICTS[figures.verdict], figures.verdict), ` ${figures.reason}`),
      checks(figures.checks),
      figures.alarms.map((alarm) => h("p", { class: "failure" }, `Alarm: ${alarm}`)),
      h("p", { class: "hint" }, `Look ${figures.look}, `, moment(figures.decided_at_ms))),
  ];
}

export const rollout = {
  id: "rollout",
  title: "Rollout",
  mount(root, context) {
    let all = [], versions = [], current = null, touched = false, defaults = { weight: 0.05 };

    const model = h("select", { on: { change: () => { touched = false; draw(); } } });
    const note = h("p", { class: "note" }, "Loading…");
    const now = h("div", { class: "card now" });
    const slider = h("input", { type: "range", min: 0, max: 100, step: 0.5, id: "canary-slider" });
    const percentage = h("input", { type: "number", min: 0, max: 100, step: "any",
      "aria-label": "Canary, per cent" });
    const version = h("select", { on: { change: touch } });
    const unit = h("select", { on: { change: touch } });
    options(unit, UNITS);
    const act = (text, kind, click) => h("button", { type: "button", class: kind, on: { click } },
      text);
    const canary = act("Start canary…", "primary", () => tryOut("canary"));
    const shadow = act("Shadow…", "", () => tryOut("shadow"));
    const promote = act("Promote…", "", () => change("promote", {
      title: `Promote ${named(version.value)}?`, yes: "Promote",
      what: `It answers every request of ${model.value}`
        + (current ? `; ${current.stable} is retired.` : "."),
      body: { version: version.value } }));
    const back = act("Roll back…", "danger", () => change("rollback", {
      title: current.candidate ? `Withdraw ${named(current.candidate)}?`
        : `Roll back from ${named(current.stable)}?`,
      yes: "Roll back", danger: true,
      what: current.candidate ? `${current.stable} answers every request again.`
        : `${current.retired.at(-1) ?? "The version before"} becomes stable again.` }));
    const pin = act("Pin…", "", () => change(current.pinned ? "unpin" : "pin", {
      title: current.pinned ? `Take the pin off ${model.value}?`
        : `Pin ${model.value} to ${current.stable}?`,
      yes: current.pinned ? "Unpin" : "Pin",
      what: current.pinned ? "Versions that pass their gate are rolled out again."
        : "No candidate and no promotion until the pin is taken off. Rollbacks still work." }));
    const fault = h("p", { class: "failure", role: "alert" });
    const figures = h("div", { class: "trial" });
    const decisions = table(
      [["When"], ["Candidate"], ["Stable"], ["Look", "num"], ["Verdict"], ["Acted"], ["Reason"]],
      { empty: "Nothing was decided yet: `feedloom rollouts run` looks at canaries." });

    root.append(
      h("div", { class: "head" }, h("h1", {}, "Rollout"), model, note),
      h("div", { class: "split even" }, now,
        h("div", { class: "card levers" },
          field("Version", version),
          h("div", { class: "field" }, h("label", { for: "canary-slider" }, "Canary, share of units"),
            h("div", { class: "row" }, slider, percentage, h("span", {}, "%"))),
          field("Unit", unit, "All requests of one unit get one version."),
          h("div", { class: "row" }, canary, shadow, promote),
          h("div", { class: "row" }, back, pin), fault)),
      h("h2", {}, "The trial so far"), figures,
      h("h2", {}, "Last decisions"), decisions.node);
    model.setAttribute("aria-label", "Model");

    const named = (name) => `${model.value}@${name}`;

    function touch() {
      touched = true;
      enable();
    }
    slider.addEventListener("input", () => { percentage.value = slider.value; touch(); });
    percentage.addEventListener("input", () => { slider.value = percentage.value; touch(); });

    function share() {
      const value = percentage.valueAsNumber;
      return Number.isFinite(value) && value > 0 && value <= 100 ? value / 100 : null;
    }

    function enable() {
      const on = current?.candidate;
      const same = on === version.value;
      const free = current && !current.pinned && version.value && version.value !== current.stable;
      const open = free && (!on || same) && share() !== null;
      canary.textContent = same && current.state === "canary" ? "Change canary…" : "Start canary…";
      canary.disabled = !open || (same && current.state === "canary" && current.unit === unit.value
        && Math.abs(current.candidate_weight - share()) < 1e-9);
      shadow.disabled = !open;
      promote.disabled = current ? !free : !version.value;
      back.disabled = !current || !(on || current.retired.length);
      pin.disabled = !current;
      pin.textContent = current?.pinned ? "Unpin…" : "Pin…";
      canary.title = share() === null ? "0 % is a rollback: use Roll back" : "";
    }

    function draw() {
      const one = all.find((each) => each.model === model.value) ?? all[0];
      if (!one) return;
      current = one.rollout;
      const candidates = versions.filter((each) => each.model === one.model && !each.may_not_serve
        && each.version !== current?.stable);
      // What was touched before the first figures came is not overwritten, but nothing is chosen yet.
      if (!touched || !version.options.length) {
        options(version, candidates.map((each) =>
          [each.version, `${each.version} (${each.stage.replace("_", " ")}, ${each.kind})`]),
        current?.candidate ?? candidates[0]?.version);
        if (current?.candidate) unit.value = current.unit;
        else if (defaults.unit) unit.value = defaults.unit;
        const weight = current?.candidate ? current.candidate_weight : defaults.weight;
        if (!touched) slider.value = percentage.value = String(+(100 * weight).toFixed(4));
      }
      now.replaceChildren(...standing(one.model, current));
      const shown = one.figures;
      figures.replaceChildren(...(shown ? arms(shown) : [h("p", { class: "empty" }, waiting())]));
      decisions.draw(one.decisions, one.decisions, (event, cells) => h("tr", {}, cells([
        moment(event.decided_at_ms), event.candidate.version, event.stable.version,
        number(event.look), badge(VERDICTS[event.verdict], event.verdict),
        event.acted ? "yes" : "no", event.reason])));
      enable();
    }

    function waiting() {
      if (!current?.candidate) return "Nothing is on trial. Pick a version and start a canary.";
      if (current.state === "shadow") {
        return "A shadow answers copies: `feedloom rollouts show` compares them.";
      }
      return "No look at this canary yet: `feedloom rollouts run` takes one.";
    }

    function standing(name, one) {
      if (!one) return [h("p", { class: "empty" }, `Nothing of ${name} serves. Promote a version.`)];
      const weight = one.state === "canary" ? one.candidate_weight : 0;
      const bar = h("div", { class: "share", role: "img",
        "aria-label": `${percent(1 - weight)} stable, ${percent(weight)} candidate` },
      h("span", { class: "stable" }), h("span", { class: "candidate" }));
      bar.lastChild.style.width = `${100 * weight}%`;
      const what = { canary: "canary", shadow: "shadow, of copies" }[one.state];
      return [
        h("div", { class: "row between" },
          h("span", {}, badge("ok", "stable"), " ", h("code", {}, one.stable),
            one.pinned ? badge("warn", "pinned") : null),
          one.candidate ? h("span", {}, h("code", {}, one.candidate), " ",
            badge("info", `${what}, ${percent(one.candidate_weight)}`)) : badge("muted", "no candidate")),
        bar,
        definitions([
          ["Revision", String(one.revision)],
          ["Changed", h("span", {}, moment(one.changed_at_ms), ` by ${one.actor || "somebody"}`)],
          ["Reason", one.reason || "none given"],
          ["Experiment", one.candidate ? h("span", {}, `${one.experiment}, by ${one.unit}, since `,
            moment(one.started_at_ms)) : null],
          ["State", one.state.replace("_", " ")],
          ["Retired", one.retired.slice(-6).join(", ") || "none"],
          ["Rolled back", one.rolled_back.slice(-6).join(", ") || "none"],
        ]),
      ];
    }

    function tryOut(action) {
      const weight = share();
      const whom = `${percent(weight)} of the ${unit.value}s`;
      change(action, {
        title: `${action === "canary" ? "Canary" : "Shadow"} ${named(version.value)} at ${percent(weight)}?`,
        yes: action === "canary" ? canary.textContent.replace("…", "") : "Start shadow",
        what: action === "canary"
          ? `It answers ${whom}, beside ${current.stable}.`
          : `It answers copies of the requests of ${whom}; nobody is shown them.`,
        body: { version: version.value, weight, unit: unit.value },
      });
    }

    async function change(action, { title, what, yes, danger, body = {} }) {
      const name = model.value, revision = current?.revision ?? 0;
      const reason = await confirm({ title, what: h("p", {}, what), yes, danger });
      if (reason === null) return;
      fault.textContent = "";
      try {
        const changed = await post(`rollouts/${encodeURIComponent(name)}`,
          { action, revision, reason, ...body });
        touched = false;
        take([changed]);
        toast(`${name}: revision ${changed.rollout.revision} stands`);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        fault.textContent = error.message;
        if (error.status === 409) {
          touched = false;
          await load();
        }
      }
    }

    // What a change made is newer than what the gateway's views may say a moment later.
    function take(models) {
      for (const one of models) {
        const place = all.findIndex((each) => each.model === one.model);
        if (place < 0) all.push(one);
        else if ((one.rollout?.revision ?? 0) >= (all[place].rollout?.revision ?? 0)) all[place] = one;
      }
      draw();
    }

    async function load() {
      try {
        const [rollouts, registry] = [await get("rollouts"), await get("versions")];
        versions = registry.versions;
        defaults = rollouts;
        options(model, rollouts.models.map((one) => [one.model]));
        model.hidden = rollouts.models.length < 2;
        note.className = "note";
        note.textContent = rollouts.models.length ? ""
          : "No model. Build the first: feedloom models bootstrap";
        take(rollouts.models);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        note.className = "note failure";
        note.textContent = `Not up to date: ${error.message}`;
      }
    }
    const polling = poller(load, 3000);
    enable();
    return {
      show: polling.start,
      hide: polling.stop,
      focus: () => percentage.focus(),
      async receive(wanted) {
        await load();
        model.value = wanted.model;
        touched = false;
        draw();
        touched = true;
        version.value = wanted.version;
        enable();
      },
    };
  },
};
