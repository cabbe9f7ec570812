// Signing in, the panels, the line at the top and the keyboard.

import { Failure, get, session } from "./api.js";
import { sheet, toast } from "./dialogs.js";
import { h, number, percent, poller, rate } from "./dom.js";
import { letters } from "./letters.js";
import { live } from "./live.js";
import { playground } from "./playground.js";
import { rollout } from "./rollout.js";
import { settings } from "./settings.js";
import { traces } from "./traces.js";
import { versions } from "./versions.js";

const PANELS = [playground, live, versions, rollout, settings, letters, traces];
const find = (id) => document.getElementById(id);
const mounted = new Map();
let me = null, shown = null;

const context = {
  get me() {
    return me;
  },
  // Another panel, told what to show.
  go(id, what) {
    location.hash = `#/${id}`;
    open(id);
    mounted.get(id)?.receive?.(what);
  },
};

function open(id) {
  const panel = PANELS.find((one) => one.id === id) ?? PANELS[0];
  if (shown === panel.id) return;
  if (shown) mounted.get(shown).hide?.();
  shown = panel.id;
  if (!mounted.has(panel.id)) {
    const root = h("section", { class: `panel ${panel.id}`, "aria-label": panel.title });
    mounted.set(panel.id, { root, ...panel.mount(root, context) });
  }
  const { root, show } = mounted.get(panel.id);
  find("main").replaceChildren(root);
  document.title = `${panel.title} · Feedloom console`;
  for (const link of find("nav").children) {
    if (link.dataset.panel === panel.id) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  show?.();
}

function chip(kind, label, value, title) {
  return h("li", { class: kind, title }, h("span", { class: "label" }, label), h("b", {}, value));
}

async function strip() {
  try {
    const now = await get("status");
    const workers = [`${now.workers_ready} ready`];
    if (now.workers_silent) workers.push(`${now.workers_silent} silent`);
    if (now.workers_failed) workers.push(`${now.workers_failed} failed`);
    find("strip").replaceChildren(
      chip(now.fault ? "bad" : "ok", "Gateway", now.fault ?? "ready", now.fault),
      chip(now.workers_failed || !now.workers_ready ? "bad" : now.workers_silent ? "warn" : "ok",
        "Workers", workers.join(", ")),
      chip("", "Lag", number(now.lag), "Interactive requests that no worker has finished"),
      chip("", "Requests", `${rate(now.requests_per_s)}/s`, "That ended in the last 10 seconds"),
      chip(now.failed_share > 0.05 ? "bad" : now.failed_share > 0 ? "warn" : "",
        "Failed", percent(now.failed_share), "Of the requests of the last 10 seconds"),
    );
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    if (error.status !== 401) {
      find("strip").replaceChildren(chip("bad", "Gateway", error.message, error.message));
    }
  }
}
const stripPoller = poller(strip, 2000);

async function enter() {
  me = await get("me");
  find("signin").hidden = true;
  find("shell").hidden = false;
  find("who").textContent = `${me.tenant}/${me.subject}`;
  find("who").title = `Roles: ${me.roles.join(", ")}`;
  stripPoller.start();
  open(location.hash.slice(2));
}

function leave(message = "") {
  stripPoller.stop();
  if (shown) mounted.get(shown).hide?.();
  session.forget();
  me = shown = null;
  mounted.clear();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  find("main").replaceChildren();
  find("strip").replaceChildren();
  find("shell").hidden = true;
  find("signin").hidden = false;
  find("signin-error").textContent = message;
  find("key").value = "";
  find("key").focus();
}

find("signin-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  find("signin-error").textContent = "";
  session.key = find("key").value.trim();
  try {
    await enter();
    find("key").value = "";
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    leave(error.message);
  }
});
document.addEventListener("signed-out", (event) => leave(event.detail));
find("signout").addEventListener("click", () => leave());

function toggleTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("feedloom.theme", root.dataset.theme);
}
find("theme").addEventListener("click", toggleTheme);

const SHORTCUTS = [
  ["1 – 7", "the panels"],
  ["/", "to the panel's first field"],
  ["Ctrl + Enter", "send"],
  ["Esc", "stop an answer; close a dialog; leave a field"],
  ["t", "light or dark"],
  ["?", "this list"],
];

function showShortcuts() {
  sheet("Keyboard", h("dl", { class: "facts keys" }, SHORTCUTS.map(([key, what]) =>
    [h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)])));
}
find("keys").addEventListener("click", showShortcuts);

document.addEventListener("keydown", (event) => {
  if (!me || document.querySelector("dialog[open]")) return;
  const typing = event.target.closest("input:not([type=range], [type=checkbox]), textarea, select");
  if (event.key === "Escape") {
    if (!mounted.get(shown)?.stop?.() && typing) typing.blur();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const panel = PANELS[Number(event.key) - 1];
  if (panel) location.hash = `#/${panel.id}`;
  else if (event.key === "/") mounted.get(shown)?.focus?.();
  else if (event.key === "?") showShortcuts();
  else if (event.key === "t") toggleTheme();
  else return;
  event.preventDefault();
});

find("nav").append(...PANELS.map((panel, place) =>
  h("a", { href: `#/${panel.id}`, "data-panel": panel.id },
    h("span", {}, panel.title), h("kbd", { "aria-hidden": "true" }, place + 1))));
window.addEventListener("hashchange", () => {
  if (me && location.hash.startsWith("#/")) open(location.hash.slice(2));
});
window.addEventListener("unhandledrejection", (event) => {
  if (event.reason?.name !== "AbortError") toast(`The console failed: ${event.reason}`, "bad");
});

if (session.key) enter().catch((error) => error.status === 401 || leave(error.message));
else leave();
