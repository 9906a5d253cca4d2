// The playground. Knows the API as any caller does; the key stays in this tab's sessionStorage and in the header of a call.
"use strict";

const $ = (id) => document.getElementById(id);
const KEY = "zopilot-gpu-key";
const NUMBERS = ["max_tokens", "temperature", "top_p", "top_k", "repetition_penalty"];
const WHOLE = new Set(["max_tokens", "top_k", "seed"]);
const SAMPLE = { type: "object", properties: { vendor: { type: "string", maxLength: 40 }, total: { type: "number" } }, required: ["vendor", "total"] };
const history = [];
let running = null; // the AbortController of the request in progress
let language = "curl";

// ---- the request -------------------------------------------------------------------------------------------------

function complain(field, sentence) {
  const input = $(field);
  $(`${field}-problem`).textContent = sentence;
  if (sentence) input.setAttribute("aria-invalid", "true");
  else input.removeAttribute("aria-invalid");
  return sentence === "";
}

function readObject(field) {
  const text = $(field).value.trim();
  if (!text) return complain(field, "") && undefined;
  try {
    const value = JSON.parse(text);
    const isObject = value !== null && typeof value === "object" && !Array.isArray(value);
    return complain(field, isObject ? "" : "This has to be a JSON object: {...}.") ? value : null;
  } catch (error) {
    complain(field, `This is not JSON yet${where(text, error)}.`);
    return null;
  }
}

function where(text, error) {
  const place = /line (\d+)/.exec(error.message);
  if (place) return `: see line ${place[1]}`;
  const at = /position (\d+)/.exec(error.message);
  if (at) return `: see line ${text.slice(0, Number(at[1])).split("\n").length}`;
  return /end of|Unterminated/i.test(error.message) ? ": it ends too early" : "";
}

function readNumbers(body) {
  const wrong = [];
  for (const name of [...NUMBERS, "seed"]) {
    const input = $(name);
    const text = input.value.trim();
    const isWhole = !WHOLE.has(name) || /^\d+$/.test(text);
    const isSafe = name !== "seed" || Number.isSafeInteger(Number(text));
    const isFine = text === "" ? input.validity.valid && name === "seed" : input.validity.valid && isWhole && isSafe;
    input.toggleAttribute("aria-invalid", false);
    if (!isFine) {
      input.setAttribute("aria-invalid", "true");
      wrong.push(document.querySelector(`label[for=${name}]`).firstChild.textContent.trim());
    } else if (text !== "") body[name] = Number(text);
  }
  $("sampling-problem").textContent = wrong.length ? `Out of range: ${wrong.join(", ")}.` : "";
  return wrong.length === 0;
}

/** The body as the fields have it; null while one of them can't be sent. */
function readBody() {
  const body = { prompt: $("prompt").value };
  const context = readObject("context");
  const schema = readObject("schema");
  const numbersAreFine = readNumbers(body);
  if (context) body.context = context;
  if (schema) body.json_schema = schema;
  const stop = $("stop").value.split("\n").filter((line) => line !== "");
  if (stop.length) body.stop = stop;
  $("sampling-told").textContent = `temperature ${$("temperature").value}, at most ${$("max_tokens").value} tokens`;
  return context === null || schema === null || !numbersAreFine ? null : body;
}

function refresh() {
  if ($("prompt").value.trim()) complain("prompt", "");
  const body = readBody();
  $("run").disabled = running !== null;
  if (body) $("code").textContent = language === "curl" ? asCurl(body) : asPython(body);
}

// ---- the request as code -----------------------------------------------------------------------------------------

const url = () => new URL("prompt", location.href).href;

function asCurl(body) {
  const json = JSON.stringify({ ...body, stream: true }, null, 2).replaceAll("'", "'\\''");
  return [`curl -N ${url()}`, '-H "X-API-Key: $ZOPILOT_GPU_API_KEY"', "-H 'Content-Type: application/json'", `-d '${json}'`].join(" \\\n  ");
}

function asPython(body) {
  return `import json
import os

import httpx

body = json.loads(r"""
${JSON.stringify({ ...body, stream: true }, null, 2).replaceAll('"""', '\\u0022"\\u0022')}
""")
headers = {"X-API-Key": os.environ["ZOPILOT_GPU_API_KEY"]}
with httpx.stream("POST", "${url()}", json=body, headers=headers, timeout=300) as answer:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            event = json.loads(line[6:])
            print(event.get("text", event), end="", flush=True)`;
}

function choose(tab) {
  language = tab.id === "tab-curl" ? "curl" : "python";
  for (const other of document.querySelectorAll("[role=tab]")) {
    other.setAttribute("aria-selected", String(other === tab));
    other.tabIndex = other === tab ? 0 : -1;
  }
  $("code").setAttribute("aria-labelledby", tab.id);
  refresh();
}

// ---- the answer --------------------------------------------------------------------------------------------------

/** Server-sent events of a body, as [name, data] pairs. */
async function* eventsOf(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      let name = "message";
      const data = [];
      for (const line of block.split("\n")) {
        if (line.startsWith("event:")) name = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
      }
      if (data.length) yield [name, JSON.parse(data.join("\n"))];
    }
  }
}

function figure(id, value, unit) {
  const place = $(id);
  place.textContent = value;
  if (unit) place.append(Object.assign(document.createElement("small"), { textContent: unit }));
}

const seconds = (ms) => (ms < 1000 ? [String(Math.round(ms)), "ms"] : [(ms / 1000).toFixed(2), "s"]);
const pace = (count, ms) => (count > 0 && ms > 0 ? (count / ms * 1000).toFixed(1) : "–");

function showError(sentence, fine) {
  $("error-text").textContent = sentence;
  $("error-fine").textContent = fine || "";
  $("error").hidden = false;
}

function clear() {
  $("output").textContent = "";
  $("error").hidden = true;
  for (const id of ["ttft", "speed", "took", "prompt-tokens", "answer-tokens", "finish"]) figure(id, "–");
}

/** What went wrong, as a sentence, from an answer that is none. */
async function refusalOf(response) {
  const told = await response.json().catch(() => null);
  if (!told || !told.error) return [`The service answered with status ${response.status}.`, ""];
  return sentenceOf(told.error, response.headers.get("Retry-After"), response.status);
}

function sentenceOf(error, retryAfter, status) {
  const again = retryAfter ? ` (in ${retryAfter} s)` : "";
  return [error.message + again, [status, error.code, error.request_id].filter(Boolean).join(" · ")];
}

async function run() {
  if (running) return;
  if (!$("prompt").value.trim()) {
    complain("prompt", "Write a prompt first.");
    $("prompt").focus();
    return;
  }
  const body = readBody();
  if (!body) {
    const wrong = document.querySelector("form [aria-invalid=true]");
    wrong.closest("details")?.setAttribute("open", "");
    wrong.focus();
    return;
  }
  clear();
  running = new AbortController();
  $("stop-run").disabled = false;
  $("run").disabled = true;
  $("output").classList.add("live");
  bringIntoView($("answer-title"));
  const entry = { body, fields: fieldsNow(), at: new Date(), reply: "", failed: false };
  const began = performance.now();
  let first = 0;
  let pieces = 0;
  try {
    const key = $("key").value.trim();
    const headers = { "Content-Type": "application/json", ...(key && { "X-API-Key": key }) };
    const response = await fetch("prompt", { method: "POST", headers, body: JSON.stringify({ ...body, stream: true }), signal: running.signal });
    if (!response.ok) throw await refusalOf(response);
    let ended = false;
    for await (const [name, data] of eventsOf(response.body)) {
      const now = performance.now();
      if (name === "text") {
        if (!pieces) figure("ttft", ...seconds((first = now) - began));
        pieces += 1;
        write(data.text);
        entry.reply += data.text;
        figure("speed", pace(pieces - 1, now - first), "pieces/s");
      } else if (name === "done") {
        ended = true;
        finish(data, now - began, now - first, entry);
      } else if (name === "error") throw sentenceOf(data.error);
    }
    if (!ended) throw ["The answer was cut: the connection ended before it was whole.", ""];
  } catch (problem) {
    const wasStopped = running.signal.aborted;
    const [sentence, fine] = wasStopped ? ["Stopped.", ""] : Array.isArray(problem) ? problem : ["The service could not be reached.", ""];
    entry.failed = !wasStopped;
    entry.reply = wasStopped ? `Stopped: ${entry.reply}` : sentence;
    if (wasStopped) figure("finish", "stopped by you");
    else showError(sentence, fine);
    $("announce").textContent = wasStopped ? "Stopped." : "";
  } finally {
    running = null;
    $("stop-run").disabled = true;
    $("run").disabled = false;
    $("output").classList.remove("live");
    figure("took", ...seconds((entry.ms = performance.now() - began)));
    remember(entry);
  }
}

function bringIntoView(title) {
  const { top } = title.getBoundingClientRect();
  if (top < 0 || top > innerHeight * 0.6) title.closest("section").scrollIntoView({ behavior: "smooth", block: "start" });
}

function write(text) {
  const output = $("output");
  const wasAtEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
  output.append(text);
  if (wasAtEnd) output.scrollTop = output.scrollHeight;
}

function finish({ output, metadata }, total, writing, entry) {
  const { usage } = metadata;
  if (metadata.output_type === "json") $("output").textContent = entry.reply = JSON.stringify(output, null, 2);
  figure("prompt-tokens", String(usage.prompt_tokens), usage.cached_tokens ? `tokens, ${usage.cached_tokens} cached` : "tokens");
  figure("answer-tokens", String(usage.completion_tokens), usage.completion_tokens === 1 ? "token" : "tokens");
  figure("speed", pace(usage.completion_tokens - 1, writing), "tokens/s");
  figure("finish", metadata.finish_reason);
  $("announce").textContent = `Done: ${usage.completion_tokens} tokens in ${seconds(total).join(" ")}.`;
}

// ---- the last requests -------------------------------------------------------------------------------------------

const FIELDS = ["prompt", "context", "schema", "stop", ...NUMBERS, "seed"];
const fieldsNow = () => Object.fromEntries(FIELDS.map((id) => [id, $(id).value]));

function remember(entry) {
  history.unshift(entry);
  history.length = Math.min(history.length, 12);
  $("history").replaceChildren(...history.map(itemOf));
}

function itemOf(entry) {
  const make = (name, className, text) => Object.assign(document.createElement(name), { className, textContent: text });
  const button = make("button", entry.failed ? "failed" : "", "");
  button.type = "button";
  button.append(
    make("strong", "", entry.body.prompt.slice(0, 200)),
    make("span", "fine", entry.at.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false })),
    make("span", "reply", entry.reply.slice(0, 200) || "nothing"),
    make("span", "fine", seconds(entry.ms).join(" ")),
  );
  button.addEventListener("click", () => {
    for (const id of FIELDS) $(id).value = entry.fields[id];
    if (entry.fields.schema) $("schema-part").open = true;
    refresh();
    $("prompt").focus();
  });
  const item = document.createElement("li");
  item.append(button);
  return item;
}

// ---- the state of the service ------------------------------------------------------------------------------------

const bytes = (count) => `${(count / 2 ** 30).toFixed(1)} GiB`;

function describe(health) {
  const { model, queue, gpu } = health;
  const name = model.model.split("/").pop();
  if (health.status === "loading") return `${name}: ${model.step}, ${Math.round(model.progress * 100)}%`;
  if (health.status !== "ok") return health.problem || "The model is not available.";
  const place = gpu ? `${gpu.name}, ${bytes(gpu.memory_used_bytes)} of ${bytes(gpu.memory_total_bytes)}` : model.device.toUpperCase();
  const busy = queue.num_running || queue.num_waiting ? ` · ${queue.num_running} running, ${queue.num_waiting} waiting` : "";
  return `${name} on ${place}${busy}`;
}

function showState(status, text, progress) {
  $("state").dataset.status = status;
  if ($("state-text").textContent !== text) $("state-text").textContent = text;
  $("loading").hidden = progress === undefined;
  if (progress !== undefined) $("loading").value = progress;
}

async function look() {
  try {
    const key = $("key").value.trim();
    const response = await fetch("health", { headers: key ? { "X-API-Key": key } : {}, cache: "no-store" });
    if (response.status === 401 || response.status === 403) return showState("unknown", "Its state needs a valid key");
    const health = await response.json();
    showState(health.status, describe(health), health.status === "loading" ? health.model.progress : undefined);
  } catch {
    showState("unreachable", "The service does not answer");
  }
}

/** Every second while something changes, every ten otherwise, never while nobody looks. */
async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, $("state").dataset.status === "ok" ? 10_000 : 1_000);
}

// ---- wiring ------------------------------------------------------------------------------------------------------

async function copy(button) {
  const source = $(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
  } catch { // no clipboard without TLS: select it instead
    getSelection().selectAllChildren(source);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 1500);
}

function start() {
  $("key").value = sessionStorage.getItem(KEY) || "";
  $("key").addEventListener("input", () => sessionStorage.setItem(KEY, $("key").value.trim()));
  $("key").addEventListener("change", look);
  $("show-key").addEventListener("click", () => {
    const shown = $("key").type === "password";
    $("key").type = shown ? "text" : "password";
    $("show-key").setAttribute("aria-pressed", String(shown));
    $("show-key").textContent = shown ? "Hide" : "Show";
  });
  $("form").addEventListener("submit", (event) => { event.preventDefault(); run(); });
  $("form").addEventListener("input", refresh);
  $("stop-run").addEventListener("click", () => running?.abort());
  $("sample-schema").addEventListener("click", () => { $("schema").value = JSON.stringify(SAMPLE, null, 2); refresh(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); run(); }
    if (event.key === "Escape") running?.abort();
  });
  for (const button of document.querySelectorAll("[data-tidy]")) {
    button.addEventListener("click", () => {
      const value = readObject(button.dataset.tidy);
      if (value) $(button.dataset.tidy).value = JSON.stringify(value, null, 2);
    });
  }
  for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", () => copy(button));
  const tabs = [...document.querySelectorAll("[role=tab]")];
  for (const tab of tabs) {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const other = tabs[(tabs.indexOf(tab) + 1) % tabs.length];
      choose(other);
      other.focus();
    });
  }
  refresh();
  watch();
}

start();
