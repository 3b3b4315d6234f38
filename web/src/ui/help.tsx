/** The keyboard shortcuts, and a dialog that lists them. */

import { signal } from "@preact/signals";
import { useEffect, useRef } from "preact/hooks";
import { Cross } from "./icons";

export const help = signal(false);

const mac = /Mac|iP(hone|ad)/.test(navigator.platform);
export const MOD = mac ? "⌘" : "Ctrl";
const SHIFT = mac ? "⇧" : "Shift";

const ROWS: [string[], string][] = [
  [["Enter"], "Send"],
  [[SHIFT, "Enter"], "New line"],
  [["↑"], "In the empty input: bring back your last message"],
  [["Esc"], "Stop the answer, or close what is open"],
  [[SHIFT, "Esc"], "Go to the input"],
  [[MOD, "K"], "Search chats; then ↑ and ↓ go through them"],
  [[MOD, SHIFT, "O"], "New chat"],
  [[MOD, "/"], "This list"],
];

export function Help() {
  const dialog = useRef<HTMLDialogElement>(null);
  const open = help.value;
  useEffect(() => {
    if (open) dialog.current!.showModal();
    else dialog.current!.close();
  }, [open]);
  const close = () => (help.value = false);
  return (
    <dialog
      ref={dialog}
      class="help"
      aria-labelledby="help-title"
      onClose={close}
      onClick={(event) => event.target === dialog.current && close()}
    >
      <div class="help-body">
        <header>
          <h2 id="help-title">Keyboard shortcuts</h2>
          <button type="button" class="quiet" aria-label="Close" onClick={close}>
            <Cross />
          </button>
        </header>
        <dl>
          {ROWS.map(([keys, text]) => (
            <div key={text}>
              <dt>{text}</dt>
              <dd>
                {keys.map((key) => (
                  <kbd key={key}>{key}</kbd>
                ))}
              </dd>
            </div>
          ))}
        </dl>
      </div>
    </dialog>
  );
}
