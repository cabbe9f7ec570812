// Every version of every model: where it came from, what was measured of it, where it stands.

import { Failure, get } from "./api.js";
import { badge, bytes, definitions, h, moment, number, percent, poller, table } from "./dom.js";

const STAGES = {
  stable: "ok", canary: "info", candidate: "info", gated: "muted", registered: "muted",
  retired: "muted", rolled_back: "warn", rejected: "bad",
};

function gate(version) {
  if (!version.gate) return badge("muted", "none");
  return version.gate.passed ? badge("ok", "passed") : badge("bad", "refused");
}

function checks(version) {
  if (!version.gate?.checks.length) return null;
  return [h("h3", {}, `Gate, at ${percent(version.gate.confidence, 0)} confidence`),
    h("table", { class: "inner" },
      h("thead", {}, h("tr", {}, ["Check", "", "Value", "Interval", "Limit", "Samples", "Why"]
        .map((text) => h("th", { scope: "col" }, text)))),
      h("tbody", {}, version.gate.checks.map((check) => h("tr", {},
        h("td", {}, check.name),
        h("td", {}, check.passed ? badge("ok", "passed") : badge("bad", "failed")),
        h("td", { class: "num" }, number(check.value, 4)),
        h("td", { class: "num" }, `${number(check.low, 4)} to ${number(check.high, 4)}`),
        h("td", { class: "num" }, number(check.limit, 4)),
        h("td", { class: "num" }, number(check.samples)),
        h("td", {}, check.reason)))))];
}

function details(version) {
  const { lineage } = version;
  return [
    version.may_not_serve
      ? h("p", { class: "failure" }, `May not serve: ${version.may_not_serve}`) : null,
    h("div", { class: "columns" },
      h("div", {}, h("h3", {}, "Lineage"), definitions([
        ["Objective", lineage.objective],
        ["Parent", version.parent ?? "none"],
        ["Base", version.base],
        ["Feedback", `${number(lineage.feedback_examples)} answers`],
        ["Offsets", lineage.feedback.join("; ") || "none"],
        ["Replay", `${percent(lineage.replay_fraction)} from ${lineage.replay_shards} shards`],
        ["Steps", number(lineage.steps)],
        ["Seed", String(lineage.seed)],
        ["Adapter rank", lineage.adapter_rank ? String(lineage.adapter_rank) : null],
        ["Code", lineage.code_version || "unknown"],
        ["Artifact", `${version.files} files, ${bytes(version.bytes)}, `
          + (version.signed ? "signed" : "not signed")],
      ])),
      h("div", {}, h("h3", {}, "Metrics"), Object.keys(version.metrics).length
        ? definitions(Object.entries(version.metrics).sort().map(([name, value]) =>
          [name, number(value, 4)]))
        : h("p", { class: "hint" }, "None were published with it."))),
    checks(version),
  ].flat().filter((one) => one !== null);
}

export const versions = {
  id: "versions",
  title: "Versions",
  mount(root, context) {
    const opened = new Set();
    const filter = h("input", { type: "search", placeholder: "Filter", "aria-label": "Filter",
      on: { input: () => draw() } });
    const note = h("p", { class: "note" });
    const list = table(
      [["", "fit"], ["Version"], ["State"], ["Kind"], ["Parent"], ["Created"],
        ["Held-out loss", "num"], ["Bits/byte", "num"], ["Win rate", "num"], ["Gate"], ["", "fit"]],
      { empty: "No version. Build the first: feedloom models bootstrap" });
    list.message("Loading…");
    root.append(h("div", { class: "head" }, h("h1", {}, "Versions"), note, filter), list.node);
    let found = null;

    function row(version, cells) {
      const name = `${version.model}@${version.version}`;
      const open = opened.has(name);
      const toggle = h("button", { type: "button", class: "quiet twist", "aria-expanded": open,
        "aria-label": `Details of ${name}`, on: { click: () => {
          if (!opened.delete(name)) opened.add(name);
          draw();
          list.body.querySelector(`[aria-label="${CSS.escape(`Details of ${name}`)}"]`)?.focus();
        } } }, open ? "▾" : "▸");
      const tries = ["stable", "canary", "candidate"].includes(version.stage)
        || version.may_not_serve ? null
        : h("button", { type: "button", class: "quiet", "aria-label": `Roll out ${name}`, on: {
          click: () => context.go("rollout", version) } }, "Roll out…");
      const line = h("tr", {}, cells([toggle, h("code", {}, name),
        badge(STAGES[version.stage], version.stage.replace("_", " ")), version.kind,
        version.parent, moment(version.created_at_ms), number(version.heldout_loss, 3),
        number(version.bits_per_byte, 3), percent(version.win_rate), gate(version), tries ?? ""]));
      return open ? [line, h("tr", { class: "details" }, h("td", { colspan: 11 }, details(version)))]
        : [line];
    }

    function draw() {
      if (!found) return;
      const wanted = filter.value.trim().toLowerCase();
      const shown = found.filter((one) =>
        `${one.model}@${one.version} ${one.stage} ${one.kind}`.toLowerCase().includes(wanted));
      if (found.length && !shown.length) list.message(`Nothing matches “${filter.value}”.`);
      else list.draw(shown, [shown, [...opened]], row);
    }

    async function load() {
      try {
        found = (await get("versions")).versions;
        note.textContent = "";
        draw();
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        note.className = "note failure";
        note.textContent = `Not up to date: ${error.message}`;
      }
    }
    const polling = poller(load, 5000);
    return { show: polling.start, hide: polling.stop, focus: () => filter.focus() };
  },
};
