/** One message: a user's bubble, an assistant's answer, or an error card. */

import { useState } from "preact/hooks";
import { clock, costs, stamp } from "../app/format";
import { discard, judge, judged, link, repost, server, type Posted } from "../app/store";
import { announce } from "../app/toasts";
import type { StepNode } from "../app/view";
import type { Said } from "../log/calls";
import type { ErrorInfo, MessageState, RequestState, RunState } from "../log/state";
import { copyText } from "../markdown/code";
import { Body } from "./body";
import { Check, Copy, Down, Up, Warn } from "./icons";
import { Calls } from "./steps";

interface Props {
  message: MessageState;
  request: RequestState | undefined;
  run: RunState | undefined;
  said: Said;
  calls: StepNode[];
  /** Whether it stands so far up that its text can wait. */
  far: boolean;
}

export function Message(props: Props) {
  const { message, run } = props;
  if (message.role === "user") return <UserMessage message={message} />;
  if (message.role === "system") return <Instructions message={message} />;
  if (message.level === "error") return <ErrorMessage message={message} error={run?.error ?? null} />;
  return <Answer {...props} />;
}

function Time({ at }: { at: number }) {
  return (
    <time class="time" dateTime={new Date(at / 1e6).toISOString()} title={stamp(at)}>
      {clock(at)}
    </time>
  );
}

function UserMessage({ message }: { message: MessageState }) {
  return (
    <article class="entry user" data-message={message.id}>
      <Time at={message.created} />
      <h2 class="visually-hidden">You</h2>
      <div class="bubble" dir="auto">
        {message.content}
      </div>
    </article>
  );
}

/** What a model was told over the API, beside what was said. */
function Instructions({ message }: { message: MessageState }) {
  return (
    <article class="entry instructions" data-message={message.id}>
      <Time at={message.created} />
      <h2 class="author">Instructions</h2>
      <div class="pre" dir="auto">
        {message.content}
      </div>
    </article>
  );
}

/** A message of this tab that the log does not have yet. */
export function PostedMessage({ post }: { post: Posted }) {
  return (
    <article class={post.error ? "entry user refused" : "entry user pending"}>
      <h2 class="visually-hidden">You</h2>
      <div class="bubble" dir="auto">
        {post.content}
      </div>
      {post.error ? (
        <p class="chips">
          <span class="chip bad">Not sent: {post.error}</span>
          <button type="button" class="link" onClick={() => repost(post)}>
            Try again
          </button>
          <button type="button" class="link" onClick={() => discard(post.id)}>
            Discard
          </button>
        </p>
      ) : (
        <p class="chips">
          <span class="chip late">{link.value.is === "open" ? "Sending…" : "Waits for the connection"}</span>
        </p>
      )}
    </article>
  );
}

const CHIP: Record<string, [string, string]> = {
  stopped: ["Stopped", "calm"],
  interrupted: ["Interrupted", "warn"],
  failed: ["Failed", "bad"],
};

function Answer({ message, request, said, calls, far }: Props) {
  const author = message.author ?? server.value?.app?.name ?? "Assistant";
  const over = message.status !== "streaming";
  const chip = CHIP[message.status];
  const why = request?.state === "failed" ? request.message : null;
  const cut = request?.state === "finished" && request.reason === "length";
  return (
    <article class="entry answer" data-message={message.id} data-status={message.status}>
      <Time at={message.created} />
      <h2 class={message.author ? "author" : "visually-hidden"}>{author}</h2>
      {(said.text || !calls.length) && <Body message={message} text={said.text} plain={!request?.tools.length} far={far} />}
      {calls.length > 0 && <Calls calls={calls} />}
      {said.calling && (
        <p class="entry waiting">
          <span class="dots" aria-hidden="true" /> Calling a tool
        </p>
      )}
      {(chip || cut || message.edited) && (
        <p class="chips">
          {chip && <span class={`chip ${chip[1]}`}>{why ? `${chip[0]}: ${why}` : chip[0]}</span>}
          {cut && <span class="chip calm">Cut at the longest allowed answer</span>}
          {message.edited && <span class="chip calm">Edited</span>}
        </p>
      )}
      {over && (
        <footer class="foot">
          {said.text && <CopyMessage text={said.text} />}
          <Thumbs message={message} />
          {request && <span class="costs">{costs(request).join(" · ")}</span>}
        </footer>
      )}
    </article>
  );
}

function CopyMessage({ text }: { text: string }) {
  const [copied, setCopied] = useState(false);
  const copy = async () => {
    const done = await copyText(text);
    setCopied(done);
    announce(done ? "Copied" : "Copying failed");
    setTimeout(() => setCopied(false), 2000);
  };
  return (
    <button type="button" class="quiet" aria-label="Copy message" title="Copy message" onClick={copy}>
      {copied ? <Check /> : <Copy />}
    </button>
  );
}

function Thumbs({ message }: { message: MessageState }) {
  const value = judged.value.get(message.id) ?? message.feedback?.value ?? 0;
  const thumb = (mine: 1 | -1, label: string, Shape: typeof Up) => (
    <button
      type="button"
      class="quiet"
      aria-label={label}
      title={label}
      aria-pressed={value === mine}
      onClick={() => judge(message.id, value === mine ? 0 : mine)}
    >
      <Shape />
    </button>
  );
  return (
    <>
      {thumb(1, "Good answer", Up)}
      {thumb(-1, "Bad answer", Down)}
    </>
  );
}

/** What a handler said about a failure, with the details that its run has. */
function ErrorMessage({ message, error }: { message: MessageState; error: ErrorInfo | null }) {
  const kind = error?.kind ?? "Error";
  const text = message.content.startsWith(`${kind}: `) ? message.content.slice(kind.length + 2) : message.content;
  return <ErrorCard title={kind} text={text} detail={error?.traceback ?? null} />;
}

function ErrorCard({ title, text, detail }: { title: string; text: string; detail?: string | null }) {
  return (
    <article class="entry">
      <div class="card bad">
        <h2>
          <Warn /> {title}
        </h2>
        <p class="pre">{text}</p>
        {detail && (
          <details>
            <summary>Details</summary>
            <pre tabIndex={0}>{detail}</pre>
          </details>
        )}
      </div>
    </article>
  );
}

/** How a run ended, where that is news. */
export function RunEnd({ run }: { run: RunState }) {
  if (run.status === "failed") {
    const { kind = "Error", message = "The handler failed.", traceback = null } = run.error ?? {};
    return <ErrorCard title={kind} text={message} detail={traceback} />;
  }
  const text = run.status === "stopped" ? "Stopped" : "Interrupted: the server was restarted";
  return (
    <div class="entry">
      <p class="chips">
        <span class={`chip ${run.status === "stopped" ? "calm" : "warn"}`}>{text}</span>
      </p>
    </div>
  );
}
