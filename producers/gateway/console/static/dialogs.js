// What interrupts: a question with a reason, a sheet to read, a word in passing.

import { h } from "./dom.js";

const find = (id) => document.getElementById(id);

// Asks for a reason; what was typed, or null if the person thought better of it.
export function confirm({ title, what, yes, danger = false }) {
  const dialog = find("confirm"), form = find("confirm-form"), reason = find("confirm-reason");
  find("confirm-title").textContent = title;
  find("confirm-what").replaceChildren(...[what].flat());
  const button = find("confirm-yes");
  button.textContent = yes;
  button.className = danger ? "danger" : "primary";
  reason.value = "";
  return new Promise((resolve) => {
    let answer = null;
    form.onsubmit = (event) => {
      event.preventDefault();
      if (!reason.value.trim()) return;
      answer = reason.value.trim();
      dialog.close();
    };
    find("confirm-no").onclick = () => dialog.close();
    dialog.onclose = () => resolve(answer);
    dialog.showModal();
    reason.focus();
  });
}

export function sheet(title, ...content) {
  const dialog = find("sheet");
  find("sheet-title").textContent = title;
  find("sheet-body").replaceChildren(...content);
  find("sheet-close").onclick = () => dialog.close();
  if (!dialog.open) dialog.showModal();
}

export function toast(text, kind = "ok") {
  const node = h("p", { class: `toast ${kind}` }, text);
  const close = h("button", { type: "button", class: "quiet", "aria-label": "Dismiss",
    on: { click: () => node.remove() } }, "×");
  node.append(close);
  find("toasts").append(node);
  // A failure stays until it was read.
  if (kind === "ok") setTimeout(() => node.remove(), 6000);
}
