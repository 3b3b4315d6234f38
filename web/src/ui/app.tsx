/** The page. */

import { useEffect } from "preact/hooks";
import { narrowScreen, sidebar, toggleSidebar } from "../app/layout";
import { current, link, newChat, server, thread } from "../app/store";
import { rowOf, threads } from "../app/threads";
import { Announcer, ConnectionBanner, ReloadCard, Toasts } from "./banner";
import { Composer } from "./composer";
import { Conversation } from "./conversation";
import { Help } from "./help";
import { Panel, Plus } from "./icons";
import { KeyPrompt } from "./key";
import { Sidebar, titleOf } from "./sidebar";

export function App() {
  const open = sidebar.value;
  const over = open && narrowScreen.value;
  return (
    <div class={open ? "app with-sidebar" : "app"}>
      <a class="skip" href="#composer">
        Skip to the input
      </a>
      {open && <Sidebar />}
      {over && <div class="scrim" onClick={() => (sidebar.value = false)} />}
      <main class="main" inert={over}>
        <Header />
        <ConnectionBanner />
        {link.value.is === "locked" ? (
          <KeyPrompt message={link.value.message} />
        ) : (
          <>
            <Conversation />
            <ReloadCard />
            <Composer />
          </>
        )}
      </main>
      <Toasts />
      <Announcer />
      <Help />
    </div>
  );
}

function Header() {
  const id = current.value;
  const listed = threads.value.find((row) => row.id === id) ?? rowOf(id);
  const state = thread.value.replica?.state;
  const title = listed?.title || state?.title || (listed ? titleOf(listed) : "New chat");
  const name = server.value?.app?.name ?? "Everlog";
  useEffect(() => {
    document.title = title === "New chat" ? name : `${title} · ${name}`;
  }, [title, name]);
  return (
    <header class="head">
      {!sidebar.value && (
        <button
          type="button"
          class="quiet"
          aria-label="Show the list of chats"
          aria-expanded={false}
          title="Show the list"
          data-sidebar
          onClick={toggleSidebar}
        >
          <Panel />
        </button>
      )}
      <h1 dir="auto" title={title}>{title}</h1>
      {(narrowScreen.value || !sidebar.value) && (
        <button type="button" class="quiet" aria-label="New chat" title="New chat" onClick={newChat}>
          <Plus />
        </button>
      )}
    </header>
  );
}
