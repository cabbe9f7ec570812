// Dynamic settings: what is in force, since when and why; change, history and the way back.

import { Failure, get, post } from "./api.js";
import { confirm, toast } from "./dialogs.js";
import { badge, field, h, moment, options, poller, table } from "./dom.js";

const OUTCOMES = { "in force": "ok", "not valid": "bad", overtaken: "warn", "not made": "muted" };

function shown(value) {
  return value === null ? "no limit" : String(value);
}

export const settings = {
  id: "settings",
  title: "Configuration",
  mount(root) {
    let found = null, opened = null, editor = null;
    const newest = new Map();
    const filter = h("input", { type: "search", placeholder: "Filter", "aria-label": "Filter",
      on: { input: () => draw() } });
    const only = h("input", { type: "checkbox", id: "only-set", on: { change: () => draw() } });
    const own = h("input", { type: "text", placeholder: "tenants.acme.weight", spellcheck: "false",
      "aria-label": "Setting of one tenant or worker" });
    const fault = h("p", { class: "failure", role: "alert" });
    const note = h("p", { class: "note" });
    const list = table(
      [["Setting"], ["In force", "num"], ["Default", "num"], ["Meaning"], ["Last change"], ["", "fit"]],
      { empty: "No setting." });
    list.message("Loading…");
    root.append(
      h("div", { class: "head" }, h("h1", {}, "Configuration"), note, filter,
        h("span", { class: "check" }, only, h("label", { for: "only-set" }, "Only those set")),
        h("form", { class: "row", on: { submit: (event) => {
          event.preventDefault();
          openOwn(own.value.trim());
        } } }, own, h("button", { type: "submit" }, "Open"))),
      fault, list.node);

    async function openOwn(key) {
      if (!key) return;
      fault.textContent = "";
      try {
        const one = await get(`settings/${encodeURIComponent(key)}`);
        newest.set(key, one);
        filter.value = "";
        only.checked = false;
        merge();
        toggle(key, true);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        fault.textContent = error.message;
      }
    }

    function toggle(key, wanted = opened !== key) {
      opened = wanted ? key : null;
      editor = wanted ? edit(found.find((one) => one.key === key)) : null;
      draw();
      if (editor) {
        editor.input.focus();
        editor.node.scrollIntoView({ block: "nearest" });
      }
      else list.body.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
    }

    function row(one, cells) {
      const open = opened === one.key;
      const change = one.change
        ? h("span", {}, moment(one.change.changed_at_ms), ` ${one.change.actor || "somebody"}`,
          one.change.reason ? `: ${one.change.reason}` : "") : null;
      const line = h("tr", { class: one.set ? "set" : "" }, cells([
        h("code", {}, one.key),
        h("span", {}, one.refused ? badge("bad", "newest refused") : null,
          h(one.set ? "b" : "span", {}, shown(one.value))),
        shown(one.default), one.description, change,
        h("button", { type: "button", class: "quiet", "data-key": one.key, "aria-expanded": open,
          "aria-label": `Edit ${one.key}`, on: { click: () => toggle(one.key) } },
        open ? "Close" : "Edit")]));
      return open ? [line, h("tr", { class: "details" }, h("td", { colspan: 6 }, editor.node))] : [line];
    }

    function edit(one) {
      const known = one.choices.length ? one.choices
        : one.accepts === "true or false" ? ["true", "false"] : null;
      const input = known ? h("select", {})
        : h("input", { type: "text", spellcheck: "false", inputmode: "decimal" });
      if (known) options(input, known.map((value) => [value]), String(one.value));
      else input.value = one.value ?? "";
      const said = h("p", { class: "failure", role: "alert" });
      const past = h("div", {}, h("p", { class: "hint" }, "Loading the history…"));
      const save = (value, title) => apply(one.key, "", { value }, said, title);
      const node = h("form", { class: "columns", on: { submit: (event) => {
        event.preventDefault();
        if (input.value.trim()) save(input.value.trim(), `Set ${one.key} to ${input.value.trim()}?`);
        else said.textContent = `${one.key} takes ${one.accepts}`;
      } } },
      h("div", {}, field(`Value of ${one.key}`, input, `Takes ${one.accepts}.`),
        one.refused ? h("p", { class: "failure" }, `Revision ${one.refused.revision} (`
          + `${one.refused.value}) is not in force: ${one.refused.why}`) : null,
        h("div", { class: "row" }, h("button", { type: "submit", class: "primary" }, "Set…"),
          h("button", { type: "button", disabled: !one.set, on: {
            click: () => save("null", `Bring back the default of ${one.key}?`) } }, "Unset…")),
        said), h("div", {}, h("h3", {}, "History"), past));
      history(one.key, past, said);
      return { node, input };
    }

    async function history(key, past, said) {
      try {
        const { changes } = await get(`settings/${encodeURIComponent(key)}/history`);
        past.replaceChildren(changes.length ? h("table", { class: "inner" },
          h("thead", {}, h("tr", {}, ["Rev.", "Value", "When", "Who", "Why", "", ""].map((text) =>
            h("th", { scope: "col" }, text)))),
          h("tbody", {}, changes.map((change) => h("tr", {},
            h("td", { class: "num" }, String(change.revision)), h("td", { class: "num" }, change.value),
            h("td", {}, moment(change.changed_at_ms)), h("td", {}, change.actor || "–"),
            h("td", {}, change.reason || "–"),
            h("td", {}, badge(OUTCOMES[change.outcome] ?? "muted", change.outcome)),
            h("td", {}, change.outcome === "replaced" ? h("button", { type: "button", class: "quiet",
              "aria-label": `Revert to revision ${change.revision}`, on: { click: () =>
                apply(key, "/revert", { to: change.revision }, said,
                  `Bring back ${change.value} for ${key}?`) } }, "Revert…") : "")))))
          : h("p", { class: "empty" }, "Never changed."));
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        past.replaceChildren(h("p", { class: "failure" }, error.message));
      }
    }

    async function apply(key, path, body, said, title) {
      said.textContent = "";
      const { revision } = found.find((one) => one.key === key);
      const reason = await confirm({ title, yes: "Change",
        what: h("p", {}, "Every process follows within a second or so; nothing restarts.") });
      if (reason === null) return;
      try {
        const one = await post(`settings/${encodeURIComponent(key)}${path}`,
          { ...body, revision, reason });
        newest.set(key, one);
        merge();
        toggle(key, true);
        toast(`${key} is ${shown(one.value)} now`);
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        if (error.status === 409) {
          const one = await get(`settings/${encodeURIComponent(key)}`);
          newest.set(key, one);
          merge();
          toggle(key, true);
          fault.textContent = error.message;
        } else said.textContent = error.message;
      }
    }

    // What was just changed here is newer than what the gateway's views may say a moment later.
    function merge(listed = found) {
      const by = new Map(listed.map((one) => [one.key, one]));
      for (const [key, one] of newest) {
        if ((by.get(key)?.revision ?? -1) < one.revision || !by.has(key)) by.set(key, one);
      }
      found = [...by.values()].sort((a, b) => (a.key < b.key ? -1 : 1));
    }

    function draw() {
      if (!found) return;
      const wanted = filter.value.trim().toLowerCase();
      const rows = found.filter((one) => (!only.checked || one.set || one.key === opened)
        && `${one.key} ${one.description}`.toLowerCase().includes(wanted));
      if (rows.length) list.draw(rows, [rows, opened, editor && Date.now()], row);
      else list.message(only.checked && !wanted ? "Everything is at its default."
        : `Nothing matches “${filter.value}”.`);
    }

    async function load() {
      try {
        const { settings: listed } = await get("settings");
        note.textContent = "";
        merge(listed);
        // What somebody is typing in is left alone.
        if (!opened) draw();
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
