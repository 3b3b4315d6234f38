/** The HTTP side: the list of threads, and how the engine is. */

import type { ModelInfo } from "../log/protocol";
import { authorized } from "./key";
import { root } from "./place";

export interface ThreadRow {
  id: string;
  title: string | null;
  created: number;
  updated: number;
  seq: number;
  version: number;
  messages: number;
  preview: string | null;
}

export interface ThreadPage {
  items: ThreadRow[];
  next: number | string | null;
}

/** One page of threads, newest first. */
export async function fetchThreads(search: string, before: number | string | null): Promise<ThreadPage> {
  const query = new URLSearchParams({ limit: "50" });
  if (search) query.set("search", search);
  if (before !== null) query.set("before", String(before));
  const response = await fetch(new URL(`api/threads?${query}`, root), { headers: { accept: "application/json", ...authorized() } });
  if (!response.ok) throw new Error(`The list of chats could not be read (${response.status}).`);
  return (await response.json()) as ThreadPage;
}

/** starting | ready | restarting | stopped | failed | disabled | no worker */
export type EngineStatus = string;

/** How the engine is now; null if it cannot be asked. */
export async function fetchEngine(): Promise<{ engine: EngineStatus; model: ModelInfo | null } | null> {
  try {
    const response = await fetch(new URL("api/info", root), { headers: authorized() });
    if (!response.ok) return null;
    const { engine, model } = (await response.json()) as { engine: EngineStatus; model: Record<string, unknown> | null };
    const { model: name, context, device } = model ?? {};
    return { engine, model: model && { name: String(name), context: Number(context), device: String(device) } };
  } catch {
    return null;
  }
}
