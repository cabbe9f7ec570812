// How the platform does now: rates, times and errors of the last quarter of an hour; the workers.

import { Failure, get } from "./api.js";
import { age, badge, duration, h, moment, number, percent, poller, rate, table } from "./dom.js";
import { plot } from "./plots.js";

const STATES = { ready: "ok", starting: "warn", draining: "warn", stopped: "muted", failed: "bad" };

function state(worker) {
  if (worker.silent) return badge("bad", `silent (${worker.state})`);
  return badge(STATES[worker.state] ?? "muted", worker.state);
}

function beside(worker) {
  return Object.entries(worker.loaded).flatMap(([model, names]) =>
    names.filter((name) => name !== worker.versions[model]).map((name) => `${model}@${name}`)
  ).join(", ");
}

function lastSwitch(worker) {
  const one = worker.last_switch;
  if (worker.failure) return h("span", { class: "failure" }, `refused: ${worker.failure}`);
  if (!one) return null;
  return `${one.from_version} → ${one.to_version}, paused ${duration(one.pause_ms)}, `
    + `${one.in_flight} in flight`;
}

export const live = {
  id: "live",
  title: "Live",
  mount(root) {
    const plots = {
      requests: plot({ title: "Requests/s", lines: [{ colour: "series-1" }], shown: rate,
        axis: (value) => number(value, value % 1 ? 1 : 0) }),
      tokens: plot({ title: "Tokens/s", lines: [{ colour: "series-1" }], shown: rate,
        axis: number }),
      ttft: plot({ title: "Time to first token", shown: duration, floor: 10, lines: [
        { label: "p50", colour: "series-1" }, { label: "p95", colour: "series-2" }] }),
      failed: plot({ title: "Failed", lines: [{ colour: "series-3" }], floor: 0.05,
        shown: percent, axis: (value) => percent(value, 0) }),
      lag: plot({ title: "Lag, requests", lines: [{ colour: "series-2" }], shown: number,
        floor: 10 }),
    };
    const note = h("p", { class: "note" }, "Loading…");
    const workers = table(
      [["Worker"], ["State"], ["Serves"], ["Beside it"], ["Last switch"], ["Last report", "num"]],
      { empty: "No worker has reported. Start one: feedloom worker" });
    root.append(
      h("div", { class: "head" }, h("h1", {}, "Live"), note),
      h("div", { class: "plots" }, Object.values(plots).map((one) => one.node)),
      h("h2", {}, "Workers"), workers.node);

    async function load() {
      try {
        const now = await get("live");
        const { times, requests_per_s, tokens_per_s, ttft_p50_ms, ttft_p95_ms, failed_share, lag } =
          now.series;
        plots.requests.draw(times, requests_per_s);
        plots.tokens.draw(times, tokens_per_s);
        plots.ttft.draw(times, ttft_p50_ms, ttft_p95_ms);
        plots.failed.draw(times, failed_share);
        plots.lag.draw(times, lag);
        workers.draw(now.workers, now.workers, (worker, cells) => h("tr", {}, cells([
          h("code", {}, worker.worker_id),
          state(worker),
          Object.entries(worker.versions).map(([model, name]) => `${model}@${name}`).join(", "),
          beside(worker) || null,
          lastSwitch(worker),
          `${age(worker.age_ms)} ago`,
        ])));
        note.className = now.fault ? "note failure" : "note";
        note.replaceChildren(...(now.fault
          ? [`The figures stand still: ${now.fault}. Restart this gateway.`]
          : ["All gateways' requests, in steps of ", `${now.step_s} s, since `,
            moment(Math.max(now.since_ms ?? 0, now.now_ms - 900_000))]));
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        note.className = "note failure";
        note.textContent = `Not up to date: ${error.message}`;
      }
    }
    const polling = poller(load, 1000);
    return { show: polling.start, hide: polling.stop };
  },
};
