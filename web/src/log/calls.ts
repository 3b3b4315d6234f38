/**
 * Tool calls in the text of an answer, as app/transport/openai/calls.py reads them: JSON between
 * `<tool_call>` tags (Hermes, Qwen, SmolLM2), or the whole text (Llama 3, and answers that were
 * forced to call). tests/web/test_calls.py holds the two against each other.
 */

import type { RequestState } from "./state";

export interface Called {
  name: string;
  arguments: Record<string, unknown>;
}

/** What an answer says and calls. */
export interface Said {
  text: string;
  calls: Called[];
  /** A call is being written, as far as one can tell. */
  calling: boolean;
}

const OPEN = "<tool_call>";
const CLOSE = "</tool_call>";
const PYTHON = "<|python_tag|>";
const LLAMA = /llama[-_ ]?3/i;

/** Take an answer apart; `done`: no more text comes, so what looks like half a call is text. */
export function said(text: string, request: RequestState | undefined, done: boolean): Said {
  if (!request?.tools.length) return { text, calls: [], calling: false };
  const names = new Set(request.tools);
  if (request.forced) return whole(text, names, done);
  return LLAMA.test(request.model ?? "") ? bare(text, names, done) : tagged(text, names, done);
}

/** Id of a call: always the same for the same request. */
export function callId(request: string, index: number): string {
  return `call_${request.replaceAll("-", "")}${index}`;
}

function whole(text: string, names: Set<string>, done: boolean, json = text): Said {
  if (!done) return { text: "", calls: [], calling: text !== "" };
  const calls = read(json, names);
  return { text: calls.length ? "" : text, calls, calling: false };
}

/** The whole answer is calls or none of it: its first character says which. */
function bare(text: string, names: Set<string>, done: boolean): Said {
  const start = text.trimStart();
  const plain = start !== "" && start[0] !== "{" && !PYTHON.startsWith(start.slice(0, PYTHON.length));
  return plain ? { text, calls: [], calling: false } : whole(text, names, done, text.replace(PYTHON, ""));
}

/** White space before and after calls is not part of the answer. */
function tagged(all: string, names: Set<string>, done: boolean): Said {
  const calls: Called[] = [];
  let [text, at] = ["", 0];
  const say = (part: string) => {
    if (!calls.length || part.trim()) text += part;
  };
  for (let open = all.indexOf(OPEN); open >= 0; open = all.indexOf(OPEN, at)) {
    say(all.slice(at, open).trimEnd());
    const close = all.indexOf(CLOSE, open + OPEN.length);
    if (close < 0 && !done) return { text, calls, calling: true };
    at = close < 0 ? all.length : close + CLOSE.length;
    const found = read(all.slice(open + OPEN.length, close < 0 ? at : close), names);
    calls.push(...found);
    if (!found.length) say(all.slice(open, at));
  }
  const rest = all.slice(at);
  if (done) say(calls.length ? rest.trimEnd() : rest);
  else say(rest.slice(0, rest.length - overlap(rest)).trimEnd());
  return { text, calls, calling: false };
}

/** How many characters at the end may be the beginning of a tag. */
function overlap(text: string): number {
  for (let size = Math.min(text.length, OPEN.length - 1); size > 0; size--) if (text.endsWith(OPEN.slice(0, size))) return size;
  return 0;
}

/** Calls in a text that is nothing else: JSON objects, an array of them, or several in a row. */
function read(text: string, names: Set<string>): Called[] {
  const calls: Called[] = [];
  let seen = false;
  for (let at = 0; at < text.length; ) {
    if (/\s/.test(text[at]!) || (seen && /[;,]/.test(text[at]!))) {
      at += 1;
      continue;
    }
    const end = valueEnd(text, at);
    const values = end ? parse(text.slice(at, end)) : undefined;
    if (values === undefined) return [];
    for (const value of [values].flat()) {
      const call = toCall(value, names);
      if (!call) return [];
      calls.push(call);
      seen = true;
    }
    at = end;
  }
  return calls;
}

/** Where the object or array that begins at `at` ends; 0 if it is none, or not whole. */
function valueEnd(text: string, at: number): number {
  if (text[at] !== "{" && text[at] !== "[") return 0;
  let [depth, quoted] = [0, false];
  for (let i = at; i < text.length; i++) {
    const char = text[i];
    if (quoted && char === "\\") i += 1;
    else if (char === '"') quoted = !quoted;
    else if (quoted) continue;
    else if (char === "{" || char === "[") depth += 1;
    else if ((char === "}" || char === "]") && --depth === 0) return i + 1;
  }
  return 0;
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text) as unknown;
  } catch {
    return undefined;
  }
}

const isMap = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);

function toCall(value: unknown, names: Set<string>): Called | null {
  if (!isMap(value)) return null;
  const { name } = value;
  let given = "arguments" in value ? value.arguments : "parameters" in value ? value.parameters : {};
  if (typeof given === "string") given = parse(given);
  return typeof name === "string" && names.has(name) && isMap(given) ? { name, arguments: given } : null;
}
