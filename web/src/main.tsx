import "./styles/index.css";
import "./app/theme";
import { render } from "preact";
import { start } from "./app/store";
import { App } from "./ui/app";
import { listenForKeys } from "./ui/keys";

// A relative one would be looked for anew at the address of every thread.
const icon = document.querySelector<HTMLLinkElement>("link[rel=icon]");
icon?.setAttribute("href", icon.href);

listenForKeys();
start();
render(<App />, document.getElementById("app")!);
