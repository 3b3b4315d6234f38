/** Where one writes. It is never disabled: what is sent while offline waits its turn. */

import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { draftChanged, draftOf, keepDraft } from "../app/drafts";
import { focusComposer } from "../app/focus";
import { active, current, post, stop, stopping, thread } from "../app/store";
import { MAX_CONTENT } from "../log/protocol";
import { Send, Stop } from "./icons";

const coarse = matchMedia("(pointer: coarse)");

export function Composer() {
  const id = current.value;
  const input = useRef<HTMLTextAreaElement>(null);
  const [text, setText] = useState(() => draftOf(id));
  const changes = draftChanged.value;
  const busy = active.value;
  const over = [...text].length - MAX_CONTENT;
  const ready = text.trim() !== "" && over <= 0;

  useEffect(() => setText(draftOf(id)), [id, changes]);
  useEffect(() => {
    if (!coarse.matches) focusComposer(); // on a phone the keyboard would cover the page
  }, [id]);
  useLayoutEffect(() => fit(input.current!), [text]);

  const edit = (value: string) => {
    setText(value);
    keepDraft(id, value);
  };
  const send = () => {
    if (!ready) return;
    post(text);
    focusComposer();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    if (event.isComposing) return;
    if (event.key === "Enter" && !event.shiftKey && !coarse.matches) {
      event.preventDefault();
      send();
    } else if (event.key === "ArrowUp" && text === "") {
      const last = thread.value.replica?.state.messages.findLast((message) => message.role === "user");
      if (!last) return;
      event.preventDefault();
      edit(last.content);
    }
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        send();
      }}
    >
      <div class="field">
        <textarea
          ref={input}
          id="composer"
          rows={1}
          dir="auto"
          aria-label="Message"
          placeholder="Write a message"
          value={text}
          onInput={(event) => edit(event.currentTarget.value)}
          onKeyDown={onKeyDown}
        />
        {busy && <StopButton id={id} />}
        {(!busy || ready) && (
          <button type="submit" class="send" aria-label="Send" title="Send (Enter)" aria-disabled={!ready}>
            <Send />
          </button>
        )}
      </div>
      {over > 0 && (
        <p class="too-long" role="alert">
          {over.toLocaleString("en")} characters too many.
        </p>
      )}
    </form>
  );
}

function StopButton({ id }: { id: string }) {
  const asked = stopping.value.has(id);
  const click = () => {
    stop();
    focusComposer();
  };
  return (
    <button type="button" class="stop" title="Stop (Esc)" aria-disabled={asked} onClick={click}>
      <Stop /> {asked ? "Stopping…" : "Stop"}
    </button>
  );
}

/** Let the input be as high as its text; the style sheet sets the limit. */
function fit(input: HTMLTextAreaElement): void {
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}
