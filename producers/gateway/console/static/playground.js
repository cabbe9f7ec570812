// Ask the model, watch the answer come, say what you think of it.

import { Failure, get, request } from "./api.js";
import { toast } from "./dialogs.js";
import { duration, field, h, number, options, rate } from "./dom.js";
import { events } from "./sse.js";

const DRAWN_EVERY_MS = 100;

function figures() {
  const shown = {};
  const item = (name, label) => {
    shown[name] = h("dd", {}, "–");
    return h("div", {}, h("dt", {}, label), shown[name]);
  };
  const node = h("dl", { class: "figures" },
    item("ttft", "TTFT"), item("rate", "Tokens/s"), item("tokens", "Tokens"),
    item("total", "Total"), item("version", "Version"), item("finish", "Finish"));
  return { node, shown };
}

export const playground = {
  id: "playground",
  title: "Playground",
  mount(root, context) {
    const turns = [];
    let running = null, models = null;

    const model = h("select", {});
    const mode = h("select", {});
    options(mode, [["chat", "Chat"], ["prompt", "Prompt (continued as it is)"]]);
    const system = h("textarea", { rows: 2, placeholder: "None" });
    const temperature = h("input", { type: "number", min: 0, max: 2, step: 0.1,
      placeholder: "platform’s" });
    const maxTokens = h("input", { type: "number", min: 1, step: 1, placeholder: "platform’s" });
    const seed = h("input", { type: "number", min: 0, step: 1, placeholder: "random" });
    const asked = h("textarea", { rows: 3, placeholder: "Ask something" });
    const send = h("button", { type: "submit", class: "primary" }, "Send",
      h("kbd", { "aria-hidden": "true" }, "Ctrl ↵"));
    const stop = h("button", { type: "button", disabled: true, on: { click: () => halt() } },
      "Stop", h("kbd", { "aria-hidden": "true" }, "Esc"));
    const clear = h("button", { type: "button", class: "quiet", on: { click: () => {
      halt();
      turns.length = 0;
      log.replaceChildren(hint);
      asked.focus();
    } } }, "Clear");
    const fault = h("p", { class: "failure", role: "alert" });
    const hint = h("p", { class: "empty" }, "Nothing asked yet. The answer streams in here.");
    const log = h("div", { class: "log", role: "log", "aria-label": "Conversation" }, hint);
    const form = h("form", { class: "composer", on: { submit: (event) => {
      event.preventDefault();
      ask();
    } } }, field("Message", asked), h("div", { class: "row" }, send, stop, clear, fault));
    asked.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    const systemField = field("System message", system);
    mode.addEventListener("change", () => { systemField.hidden = mode.value !== "chat"; });
    root.append(
      h("div", { class: "head" }, h("h1", {}, "Playground")),
      h("div", { class: "split" },
        h("div", { class: "talk" }, log, form),
        h("aside", { class: "card knobs", "aria-label": "Parameters" },
          field("Model", model), field("Mode", mode), systemField,
          field("Temperature", temperature), field("Max tokens", maxTokens),
          field("Seed", seed))));

    function body() {
      const given = { model: model.value, stream: true, stream_options: { include_usage: true } };
      for (const [name, input] of [["temperature", temperature], ["max_tokens", maxTokens],
        ["seed", seed]]) {
        if (input.value !== "") given[name] = input.valueAsNumber;
      }
      if (mode.value === "prompt") return { ...given, prompt: asked.value };
      const first = system.value.trim()
        ? [{ role: "system", content: system.value.trim() }] : [];
      return { ...given,
        messages: [...first, ...turns.map(({ role, content }) => ({ role, content }))] };
    }

    async function ask() {
      // Somebody quick may send before the models are known.
      await models;
      if (running || !asked.value.trim() || !model.value) return;
      fault.textContent = "";
      const chat = mode.value === "chat";
      const text = asked.value;
      if (!chat) turns.length = 0;
      turns.push({ role: "user", content: text });
      const document_ = body();
      hint.remove();
      log.append(h("article", { class: "turn user" }, h("h3", {}, chat ? "You" : "Prompt"),
        h("pre", {}, text)));
      const answer = h("pre", { class: "answer" });
      const { node, shown } = figures();
      const foot = h("div", { class: "feedback" });
      const article = h("article", { class: "turn assistant", "aria-busy": "true" },
        h("h3", {}, model.value), answer, node, foot);
      log.append(article);
      asked.value = "";
      running = new AbortController();
      send.disabled = true;
      stop.disabled = false;
      const began = performance.now();
      let first = null, content = "", id = null, usage = null, finish = null;

      const ticking = setInterval(() => {
        shown.total.textContent = duration(performance.now() - began);
        log.scrollTop = log.scrollHeight;
      }, DRAWN_EVERY_MS);
      try {
        const path = chat ? "../v1/chat/completions" : "../v1/completions";
        const response = await request(path, { body: document_, signal: running.signal });
        id = response.headers.get("x-request-id");
        for await (const data of events(response.body)) {
          if (data === "[DONE]") break;
          const event = JSON.parse(data);
          if (event.error) throw new Failure(0, event.error.message, event.error.code);
          const choice = event.choices[0];
          const piece = choice?.delta?.content ?? choice?.text ?? "";
          if (piece) {
            if (first === null) {
              first = performance.now();
              shown.ttft.textContent = duration(first - began);
            }
            content += piece;
            answer.append(piece);
          }
          finish = choice?.finish_reason ?? finish;
          usage = event.usage ?? usage;
          if (event.system_fingerprint) shown.version.textContent = event.system_fingerprint;
        }
      } catch (error) {
        if (error.name === "AbortError") finish = "stopped here";
        else if (error instanceof Failure) {
          finish = error.code ?? "failed";
          fault.textContent = error.message;
        } else {
          finish = "lost";
          fault.textContent = "the connection was lost before the answer’s end: send it again";
        }
      } finally {
        clearInterval(ticking);
      }
      const ended = performance.now();
      shown.total.textContent = duration(ended - began);
      shown.finish.textContent = finish ?? "–";
      if (usage) {
        shown.tokens.textContent = number(usage.completion_tokens);
        // The first token's time is TTFT: the rate is of those after it.
        const later = usage.completion_tokens - 1;
        if (first !== null && later > 0 && ended > first) {
          shown.rate.textContent = rate(later / ((ended - first) / 1000));
        }
      }
      article.setAttribute("aria-busy", "false");
      running = null;
      send.disabled = false;
      stop.disabled = true;
      if (content) {
        turns.push({ role: "assistant", content });
        if (id) foot.append(...feedback(id, content));
      } else {
        // An unanswered turn must not be sent again as if it were part of the talk.
        turns.pop();
        if (fault.textContent) asked.value = text;
      }
      log.scrollTop = log.scrollHeight;
      asked.focus();
    }

    function halt() {
      if (!running) return false;
      running.abort();
      return true;
    }

    function feedback(id, content) {
      const may = context.me.roles.includes("feedback");
      const said = h("span", { class: "said", role: "status" },
        may ? "" : "This key lacks the role feedback: it cannot rate answers.");
      const buttons = [];
      async function give(what, done) {
        for (const button of buttons) button.disabled = true;
        try {
          await request("../v1/feedback", { body: { request_id: id, ...what } });
          said.className = "said done";
          said.textContent = done;
        } catch (error) {
          if (!(error instanceof Failure)) throw error;
          said.className = "said failure";
          said.textContent = error.message;
        }
        for (const button of buttons) button.disabled = false;
      }
      const edited = h("textarea", { rows: 4, "aria-label": "The answer as it should be" });
      edited.value = content;
      const editor = h("form", { class: "editor", hidden: true, on: { submit: async (event) => {
        event.preventDefault();
        if (!edited.value.trim() || edited.value === content) {
          said.className = "said failure";
          said.textContent = "change the answer first";
          return;
        }
        await give({ edited_text: edited.value }, "Edit sent");
        editor.hidden = true;
      } } }, edited, h("button", { type: "submit" }, "Send edit"));
      const button = (text, label, click) => {
        const made = h("button", { type: "button", "aria-label": label, disabled: !may,
          on: { click } }, text);
        buttons.push(made);
        return made;
      };
      return [h("div", { class: "row" },
        button("▲ Good", "Thumbs up", () => give({ rating: "up" }, "Thumbs up sent")),
        button("▼ Bad", "Thumbs down", () => give({ rating: "down" }, "Thumbs down sent")),
        button("Edit…", "Edit the answer", () => {
          editor.hidden = !editor.hidden;
          if (!editor.hidden) edited.focus();
        }),
        h("button", { type: "button", class: "quiet", on: {
          click: () => context.go("traces", id) } }, "Trace"),
        said, h("code", { class: "id", title: "Request id" }, id)), editor];
    }

    async function load() {
      if (!context.me.roles.includes("caller")) {
        fault.textContent = "This key lacks the role caller: it cannot ask.";
        send.disabled = true;
      }
      try {
        const { models: serving } = await get("status");
        options(model, serving.map((one) => [one.model,
          `${one.model} (${one.stable}${one.candidate ? `, ${one.candidate} on trial` : ""})`]));
        if (!serving.length) {
          fault.textContent = "No model serves. Build the first: feedloom models bootstrap";
        }
      } catch (error) {
        if (!(error instanceof Failure)) throw error;
        toast(error.message, "bad");
      }
    }

    function show() {
      models = load();
      asked.focus();
    }
    return { show, stop: halt, focus: () => asked.focus() };
  },
};
