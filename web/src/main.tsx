import "./styles/index.css";
import "./app/theme";
import { render } from "preact";
import { start } from "./app/store";
import { App } from "./ui/app";
import { listenForKeys } from "./ui/keys";

listenForKeys();
start();
render(<App />, document.getElementById("app")!);
