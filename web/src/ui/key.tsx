/** What stands in place of the conversation while the server wants an API key. */

import { useState } from "preact/hooks";
import { token } from "../app/key";
import { unlock } from "../app/store";

export function KeyPrompt({ message }: { message: string }) {
  const [text, setText] = useState("");
  const submit = (event: Event) => {
    event.preventDefault();
    if (text.trim()) unlock(text.trim());
  };
  return (
    <form class="key" onSubmit={submit}>
      <h2>This server needs an API key</h2>
      {token() && (
        <p class="bad" role="alert">
          It says: {message}.
        </p>
      )}
      <label for="api-key">API key</label>
      <input
        id="api-key"
        type="password"
        autocomplete="off"
        spellcheck={false}
        placeholder="evl_…"
        value={text}
        autofocus
        onInput={(event) => setText(event.currentTarget.value)}
      />
      <button type="submit" disabled={!text.trim()}>
        Continue
      </button>
      <p class="note">
        Who runs the server makes one with <code>everlog keys create NAME</code>. It is kept in this tab until you close it.
      </p>
    </form>
  );
}
