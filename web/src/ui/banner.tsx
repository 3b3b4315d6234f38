/** What is wrong, if something is: connection, engine, handlers that do not load; and toasts. */

import { useEffect, useState } from "preact/hooks";
import { engine, link, notice, retryNow } from "../app/store";
import { announcement, dismiss, hold, toasts } from "../app/toasts";
import { Cross, Warn } from "./icons";

/** A connection that comes back sooner is not worth a word. */
const SILENCE_MS = 1000;

const ENGINE: Record<string, string> = {
  starting: "The model is being loaded. What you send is answered then.",
  restarting: "The model is restarting. Answers go on by themselves.",
  "no worker": "No engine is at work. What you send is answered when one is.",
  failed: "The model cannot be loaded. The server's output says why.",
};

export function ConnectionBanner() {
  const now = link.value;
  const lost = now.is === "lost";
  const since = lost ? now.since : 0;
  const [late, setLate] = useState(false);
  useEffect(() => {
    setLate(false);
    if (!lost) return undefined;
    const timer = setTimeout(() => setLate(true), Math.max(0, since + SILENCE_MS - Date.now()));
    return () => clearTimeout(timer);
  }, [lost, since]);

  if (now.is === "refused") {
    return (
      <div class="banner bad" role="alert">
        <span>{now.message}</span>
        <button type="button" class="link" onClick={() => location.reload()}>
          Reload
        </button>
      </div>
    );
  }
  if (now.is === "lost" && late) {
    return (
      <div class="banner warn" role="status">
        <span>
          {now.offline ? "You are offline. Reconnecting…" : "Reconnecting…"} (try {now.tries})
        </span>
        <button type="button" class="link" onClick={retryNow}>
          Retry now
        </button>
      </div>
    );
  }
  const trouble = ENGINE[engine.value];
  return trouble ? (
    <div class="banner warn" role="status">
      {trouble}
    </div>
  ) : null;
}

/** Stays until the file loads again: the old handlers keep working meanwhile. */
export function ReloadCard() {
  const now = notice.value;
  if (!now) return null;
  return (
    <section class="card bad reload" role="alert" aria-label="Reload failed">
      <h2>
        <Warn /> Your file could not be loaded; the handlers from before go on
        <button type="button" class="quiet" aria-label="Dismiss" onClick={() => (notice.value = null)}>
          <Cross />
        </button>
      </h2>
      <pre tabIndex={0}>{now.message}</pre>
    </section>
  );
}

export function Toasts() {
  return (
    <div
      class="toasts"
      role="region"
      aria-label="Messages"
      aria-live="polite"
      onPointerEnter={() => hold(true)}
      onPointerLeave={() => hold(false)}
      onFocusIn={() => hold(true)}
      onFocusOut={() => hold(false)}
    >
      {toasts.value.map(({ id, text, level, action }) => (
        <div key={id} class={`toast ${level}`}>
          <span>{text}</span>
          {action && (
            <button type="button" class="link" onClick={() => dismiss(id, true)}>
              {action.label}
            </button>
          )}
          <button type="button" class="quiet" aria-label="Dismiss" onClick={() => dismiss(id)}>
            <Cross />
          </button>
        </div>
      ))}
    </div>
  );
}

export function Announcer() {
  return (
    <div class="visually-hidden" role="status" aria-live="polite">
      {announcement.value}
    </div>
  );
}
