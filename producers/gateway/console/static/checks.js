// What a trial is held against: each check's interval beside its limit.

import { badge, h, number } from "./dom.js";

const LIMITS = { outcome: "above", errors: "at most", ttft: "at most", itl: "at most" };

function signed(text, value) {
  return value > 0 ? `+${text}` : text;
}

// Of shares in points, of times in per cent.
function difference(check, value) {
  return check.name === "ttft" || check.name === "itl"
    ? signed(`${number(100 * value)} %`, value) : signed(`${number(100 * value, 1)} pt`, value);
}

function state(check) {
  if (!check.judged) return badge("muted", "waiting");
  if (check.name === "outcome") {
    if (check.passed) return badge("ok", "shown");
    return check.high < 0 ? badge("bad", "shown worse") : badge("muted", "not shown");
  }
  if (check.breached) return badge("bad", "breached");
  return check.passed ? badge("ok", "ok") : badge("warn", "above, may be chance");
}

export function checks(all) {
  if (!all.length) return null;
  return h("table", { class: "inner" },
    h("thead", {}, h("tr", {}, ["Check", "Candidate against stable", "Limit", "Units", ""].map(
      (text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, all.map((check) => h("tr", {},
      h("td", {}, check.name),
      h("td", {}, check.judged ? `${difference(check, check.value)} (`
        + `${difference(check, check.low)} to ${difference(check, check.high)})`
        : "too few to tell"),
      h("td", {}, `${LIMITS[check.name] ?? ""} ${difference(check, check.limit)}`.trim()),
      h("td", { class: "num" }, number(check.samples)),
      h("td", {}, state(check))))));
}
