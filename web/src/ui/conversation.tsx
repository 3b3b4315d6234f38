/** The conversation: entries in order, kept at its end while it grows. */

import type { VNode } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { count, excerpt } from "../app/format";
import { root } from "../app/place";
import { StickToBottom } from "../app/scroll";
import { active, current, denied, newChat, posted, thread } from "../app/store";
import { announce } from "../app/toasts";
import { entries, type Entry } from "../app/view";
import { said } from "../log/calls";
import { Index, type MessageState, type ThreadState } from "../log/state";
import { Empty } from "./empty";
import { Arrow } from "./icons";
import { Message, PostedMessage, RunEnd } from "./message";
import { Activity, Calls } from "./steps";

export function Conversation() {
  const id = current.value;
  const { replica } = thread.value;
  const scroller = useRef<HTMLDivElement>(null);
  const content = useRef<HTMLDivElement>(null);
  const [stick, setStick] = useState<StickToBottom | null>(null);
  const mine = posted.value.filter((post) => post.thread === id);

  useLayoutEffect(() => {
    const made = new StickToBottom(scroller.current!, content.current!);
    setStick(made);
    return () => made.dispose();
  }, []);
  useLayoutEffect(() => stick?.jump(), [stick, id, mine.length]);
  useAnnouncements(replica?.state);

  const list = replica ? entries(replica.state) : [];
  const known = new Set(replica?.state.messages.map((message) => message.id));
  const waiting = mine.filter((post) => !known.has(post.id));
  const blank = list.length === 0 && waiting.length === 0;
  return (
    <div class="conversation">
      <div ref={scroller} class="scroller" tabIndex={-1}>
        <div ref={content} class={blank ? "content blank" : "content"}>
          <div class="log" role="log" aria-live="off" aria-label="Conversation">
            {replica && <Chapters state={replica.state} list={list} near={replica.live ? NEAR : 0} />}
            {waiting.map((post) => (
              <PostedMessage key={post.id} post={post} />
            ))}
          </div>
          {replica?.state.deleted && <p class="faint loading">This chat was deleted.</p>}
          {blank && <Blank loading={!replica?.live} />}
        </div>
      </div>
      {stick?.far.value && (
        <button type="button" class="jump" aria-label="Go to the end" title="Go to the end" onClick={() => stick.jump()}>
          <Arrow />
        </button>
      )}
    </div>
  );
}

function Blank({ loading }: { loading: boolean }) {
  if (denied.value) {
    return (
      <div class="empty">
        <h2>This chat cannot be shown</h2>
        <p>{denied.value}</p>
        <button type="button" class="button" onClick={newChat}>
          New chat
        </button>
      </div>
    );
  }
  return loading && location.pathname !== root.pathname ? <p class="faint loading">Loading…</p> : <Empty />;
}

/** How many entries stand in one chapter. */
const CHAPTER = 16;
/** How many entries at the end get their text at once, unless more are about to come. */
const NEAR = 24;

/**
 * The entries, in chapters: those that are far away are skipped as one by layout and paint. What
 * did not change since it was drawn last is not drawn again.
 */
function Chapters({ state, list, near }: { state: ThreadState; list: Entry[]; near: number }) {
  const drawn = useRef<{ state: ThreadState; rows: Map<string, [string, VNode]> }>({ state, rows: new Map() });
  const known = drawn.current.state === state ? drawn.current.rows : new Map<string, [string, VNode]>();
  const rows = new Map(
    list.map((entry, index): [string, [string, VNode]] => {
      const before = known.get(entry.key);
      if (before?.[0] === entry.stamp) return [entry.key, before];
      return [entry.key, [entry.stamp, <Row key={entry.key} entry={entry} far={index < list.length - near} />]];
    }),
  );
  drawn.current = { state, rows };
  const all = [...rows.values()].map(([, row]) => row);
  return (
    <>
      {Array.from({ length: Math.ceil(all.length / CHAPTER) }, (_, index) => (
        <div key={index} class="chapter">
          {all.slice(index * CHAPTER, (index + 1) * CHAPTER)}
        </div>
      ))}
    </>
  );
}

function Row({ entry, far }: { entry: Entry; far: boolean }) {
  switch (entry.kind) {
    case "message":
      return <Message {...entry} far={far} />;
    case "activity":
      return <Activity {...entry} />;
    case "calls":
      return <Calls calls={entry.calls} />;
    case "waiting":
      return (
        <p class="entry waiting">
          <span class="dots" aria-hidden="true" /> {entry.label}
        </p>
      );
    case "ended":
      return <RunEnd run={entry.run} />;
  }
}

/** What is heard of a message. */
function spoken(state: ThreadState, { content, request }: MessageState): string {
  const { text, calls } = said(content, Index.of(state).requests.get(request ?? ""), true);
  const parts = [excerpt(text, 2000), calls.length ? count(calls.length, "tool call") : ""];
  return parts.filter(Boolean).join(". ") || "Done";
}

/** Screen readers hear that an answer begins, and then the whole of it: not every token. */
function useAnnouncements(state: ThreadState | undefined): void {
  const busy = active.value;
  const before = useRef({ busy: false, thread: "" });
  useEffect(() => {
    const { busy: was, thread: where } = before.current;
    before.current = { busy, thread: state?.id ?? "" };
    if (!state || where !== state.id || was === busy) return;
    const last = state.messages.findLast((message) => message.role !== "user" && message.status !== "removed");
    announce(busy ? "Assistant is answering" : last ? spoken(state, last) : "Done");
  }, [busy, state]);
}
