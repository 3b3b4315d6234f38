/** What the handlers of the reducer share. */

import type { Payload } from "./payload";
import type { Item } from "./protocol";
import type { Index, MessageState, MessageStatus, ThreadState } from "./state";

/** `text`: only text was added to messages. `structure`: anything else. */
export type Change = "text" | "structure";

export interface Context {
  state: ThreadState;
  index: Index;
  item: Item;
  data: Payload;
}

export type Handler = (context: Context) => Change | void;

export function endMessage(message: MessageState, status: MessageStatus, item: Item): void {
  message.status = status;
  message.updated = item.time;
  message.ended ??= item.time;
}

/** What becomes of a bound message when its request ends. */
export const MESSAGE_AFTER: Record<string, MessageStatus> = {
  finished: "done",
  failed: "failed",
  cancelled: "stopped",
};
