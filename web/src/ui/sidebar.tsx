/** The list of chats. */

import { Fragment } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import type { ThreadRow } from "../app/api";
import { dayGroup, excerpt, stamp } from "../app/format";
import { isNarrow, sidebar, toggleSidebar } from "../app/layout";
import { threadPath } from "../app/place";
import { current, newChat, openThread, remove, rename } from "../app/store";
import { listState, loadMore, more, refresh, search, threads } from "../app/threads";
import { help } from "./help";
import { Bin, Keys, Mark, Panel, Pencil, Plus, Search } from "./icons";
import { ThemeButton } from "./theme-button";

/** On a narrow screen the list is in the way once something was picked. */
function leave(): void {
  if (isNarrow()) sidebar.value = false;
}

export function titleOf(row: Pick<ThreadRow, "title" | "preview">): string {
  return row.title || excerpt(row.preview ?? "", 60) || "New chat";
}

/** Arrows go from the search through the chats and back. */
function walk(event: KeyboardEvent): void {
  const at = event.target as HTMLElement;
  if (event.isComposing || !at.matches("#search, .thread a")) return;
  const stops = [...document.querySelectorAll<HTMLElement>("#search, .thread a")];
  const index = stops.indexOf(at);
  if (event.key === "ArrowDown") stops[index + 1]?.focus();
  else if (event.key === "ArrowUp") stops[index - 1]?.focus();
  else return;
  event.preventDefault();
}

export function Sidebar() {
  return (
    <nav id="sidebar" class="sidebar" aria-label="Chats">
      <div class="brand">
        <Mark />
        <span class="word">Everlog</span>
        <button type="button" class="quiet" data-sidebar aria-label="Hide the list of chats" aria-expanded={true} title="Hide the list" onClick={toggleSidebar}>
          <Panel />
        </button>
      </div>
      <button
        type="button"
        class="button new"
        onClick={() => {
          newChat();
          leave();
        }}
      >
        <Plus /> New chat
      </button>
      <label class="search">
        <Search />
        <span class="visually-hidden">Search chats</span>
        <input
          id="search"
          type="search"
          placeholder="Search"
          autocomplete="off"
          value={search.value}
          onKeyDown={walk}
          onInput={(event) => {
            search.value = event.currentTarget.value;
            refresh();
          }}
        />
      </label>
      <ThreadList />
      <div class="sidebar-foot">
        <ThemeButton />
        <button type="button" class="quiet" aria-label="Keyboard shortcuts" title="Keyboard shortcuts" onClick={() => (help.value = true)}>
          <Keys />
        </button>
      </div>
    </nav>
  );
}

function ThreadList() {
  const rows = threads.value;
  let group = "";
  return (
    <div class="threads" tabIndex={-1} onKeyDown={walk}>
      {rows.length === 0 && <Nothing />}
      {rows.length > 0 && (
        <ul>
          {rows.map((row) => {
            const heading = search.value ? "" : dayGroup(row.updated);
            const fresh = heading !== group;
            group = heading;
            return (
              <Fragment key={row.id}>
                {fresh && heading && <li class="group">{heading}</li>}
                <Thread row={row} />
              </Fragment>
            );
          })}
        </ul>
      )}
      {more.value !== null && (
        <button type="button" class="link more" onClick={() => void loadMore()}>
          Show older chats
        </button>
      )}
    </div>
  );
}

function Nothing() {
  if (listState.value === "loading") return null;
  if (listState.value === "failed") return <p class="faint">The list could not be read. It is tried again with the next connection.</p>;
  return <p class="faint">{search.value ? "Nothing found." : "Your chats will be listed here."}</p>;
}

function Thread({ row }: { row: ThreadRow }) {
  const [editing, setEditing] = useState(false);
  const title = titleOf(row);
  const here = row.id === current.value;
  const open = (event: MouseEvent) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return; // a new tab, as for every link
    event.preventDefault();
    openThread(row.id);
    leave();
  };
  const item = useRef<HTMLLIElement>(null);
  const discard = () => {
    const links = [...document.querySelectorAll<HTMLElement>(".thread a")];
    const index = links.indexOf(item.current!.querySelector("a")!);
    (links[index + 1] ?? links[index - 1])?.focus(); // the keyboard goes on where it was
    remove(row.id, title);
  };
  const done = (back: boolean) => {
    setEditing(false);
    if (back) requestAnimationFrame(() => item.current?.querySelector("a")?.focus());
  };
  if (editing) return <Rename row={row} title={title} done={done} />;
  return (
    <li ref={item} class={here ? "thread here" : "thread"}>
      <a href={threadPath(row.id)} dir="auto" aria-current={here ? "page" : undefined} title={`${title}\n${stamp(row.updated)}`} onClick={open}>
        {title}
      </a>
      <span class="thread-tools">
        <button type="button" class="quiet" aria-label={`Rename ${title}`} title="Rename" onClick={() => setEditing(true)}>
          <Pencil />
        </button>
        <button type="button" class="quiet" aria-label={`Delete ${title}`} title="Delete" onClick={discard}>
          <Bin />
        </button>
      </span>
    </li>
  );
}

function Rename({ row, title, done }: { row: ThreadRow; title: string; done: (back: boolean) => void }) {
  const input = useRef<HTMLInputElement>(null);
  const over = useRef(false);
  useLayoutEffect(() => input.current?.select(), []); // before the next key is typed
  const finish = (keep: boolean, back: boolean) => {
    if (over.current) return;
    over.current = true;
    if (keep) rename(row.id, input.current!.value);
    done(back);
  };
  return (
    <li class="thread">
      <input
        ref={input}
        class="rename"
        aria-label="Title"
        maxLength={200}
        defaultValue={title}
        onBlur={() => finish(true, false)}
        onKeyDown={(event) => {
          event.stopPropagation();
          if (event.key === "Enter") finish(true, true);
          if (event.key === "Escape") finish(false, true);
        }}
      />
    </li>
  );
}
