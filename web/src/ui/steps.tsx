/** What a run did, as a tree (ARIA APG "tree view"): arrows move, open and close. */

import { useRef, useState } from "preact/hooks";
import { between, count, duration, preview } from "../app/format";
import type { StepNode } from "../app/view";
import type { RunState, StepState } from "../log/state";
import { useNow } from "./clock";
import { Chevron } from "./icons";

/** Longest preview of an input or output, in characters. */
const MAX_PREVIEW = 2000;

const SAYS: Record<string, string> = {
  running: "running",
  completed: "done",
  failed: "failed",
  stopped: "stopped",
  interrupted: "interrupted",
};

interface Props {
  run: RunState;
  steps: StepNode[];
  count: number;
  /** Changes with them: they change in place. */
  stamp: string;
}

export function Activity({ run, steps, count: total, stamp }: Props) {
  const running = run.status === "running" && steps.some((node) => node.step.status === "running");
  const failed = steps.some((node) => node.step.status === "failed");
  const [choice, setChoice] = useState<boolean | null>(null);
  const open = choice ?? (running || failed);
  const only = steps.length === 1 ? steps[0]!.step.name : null;
  const title = only && total === 1 ? only : count(total, "step");
  return (
    <section class="entry activity" aria-label="Steps">
      <button type="button" class="activity-head" aria-expanded={open} onClick={() => setChoice(!open)}>
        <Chevron />
        <Status of={running ? "running" : failed ? "failed" : run.status} />
        <span class="step-name">{title}</span>
        <Timer start={steps[0]!.step.started} end={running ? null : latestEnd(steps)} />
      </button>
      {open && <Tree nodes={steps} stamp={stamp} />}
    </section>
  );
}

function latestEnd(steps: StepNode[]): number | null {
  const ends = steps.map((node) => node.step.ended);
  return ends.includes(null) ? null : Math.max(...(ends as number[]));
}

function Status({ of }: { of: string }) {
  return (
    <span class={`status ${of}`}>
      <span class="visually-hidden">{SAYS[of] ?? of}</span>
    </span>
  );
}

function Timer({ start, end }: { start: number; end: number | null }) {
  const now = useNow(end === null);
  return <span class="step-time">{duration(between(start, end, now))}</span>;
}

/** What is shown below a step: nothing, its children, or its details and its children. */
type Shown = "none" | "children" | "all";

interface TreeState {
  shown(node: StepNode): Shown;
  focus: string;
  set(id: string, to: Shown): void;
  select(id: string): void;
}

/** A click on a parent first adds its details, then closes it. */
const NEXT: Record<Shown, Shown> = { none: "all", children: "all", all: "none" };

function Tree({ nodes }: { nodes: StepNode[]; stamp: string }) {
  const root = useRef<HTMLUListElement>(null);
  const [chosen, setChosen] = useState<ReadonlyMap<string, Shown>>(new Map());
  const [focus, setFocus] = useState(nodes[0]!.step.id);
  const tree: TreeState = {
    shown: (node) => chosen.get(node.step.id) ?? (node.children.length ? "children" : "none"),
    set: (id, to) => setChosen(new Map(chosen).set(id, to)),
    focus,
    select: setFocus,
  };
  const go = (item: Element | null | undefined) => {
    if (!(item instanceof HTMLElement)) return;
    setFocus(item.dataset.step!);
    item.focus();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const item = (event.target as HTMLElement).closest<HTMLElement>("[role=treeitem]");
    if (!item || event.target !== item || event.ctrlKey || event.metaKey || event.altKey) return;
    if (move(event.key, item, root.current!, tree, go)) event.preventDefault();
  };
  return (
    <ul ref={root} class="tree" role="tree" aria-label="Steps" onKeyDown={onKeyDown}>
      {nodes.map((node) => (
        <Node key={node.step.id} node={node} level={1} tree={tree} />
      ))}
    </ul>
  );
}

/** Act on a key; returns whether it meant something. */
function move(
  key: string,
  item: HTMLElement,
  root: HTMLElement,
  tree: TreeState,
  go: (item: Element | null | undefined) => void,
): boolean {
  const all = [...root.querySelectorAll<HTMLElement>("[role=treeitem]")];
  const index = all.indexOf(item);
  const id = item.dataset.step!;
  const shown = item.dataset.shown as Shown;
  const below = item.parentElement!.querySelector(":scope > ul");
  const above = item.parentElement!.parentElement!.closest("li");
  const actions: Record<string, () => void> = {
    ArrowDown: () => go(all[index + 1]),
    ArrowUp: () => go(all[index - 1]),
    Home: () => go(all[0]),
    End: () => go(all.at(-1)),
    ArrowRight: () => (shown === "none" ? tree.set(id, "all") : go(below?.querySelector("[role=treeitem]"))),
    ArrowLeft: () => (shown === "none" ? go(above?.firstElementChild) : tree.set(id, "none")),
    Enter: () => tree.set(id, NEXT[shown]),
    " ": () => tree.set(id, NEXT[shown]),
  };
  actions[key]?.();
  return key in actions;
}

function Node({ node, level, tree }: { node: StepNode; level: number; tree: TreeState }) {
  const { step, children } = node;
  const shown = tree.shown(node);
  const details = `details-${step.id}`;
  return (
    <li role="none">
      <div
        role="treeitem"
        class="step-row"
        aria-level={level}
        aria-expanded={shown !== "none"}
        aria-selected={tree.focus === step.id}
        aria-describedby={shown === "all" ? details : undefined}
        tabIndex={tree.focus === step.id ? 0 : -1}
        data-step={step.id}
        data-shown={shown}
        onClick={() => {
          tree.select(step.id);
          tree.set(step.id, NEXT[shown]);
        }}
      >
        <Chevron />
        <Status of={step.status} />
        <span class="step-name">{step.name}</span>
        {step.kind !== "undefined" && <span class="step-kind">{step.kind}</span>}
        <Timer start={step.started} end={step.ended} />
      </div>
      {shown === "all" && <Details id={details} step={step} />}
      {children.length > 0 && shown !== "none" && (
        <ul role="group">
          {children.map((child) => (
            <Node key={child.step.id} node={child} level={level + 1} tree={tree} />
          ))}
        </ul>
      )}
    </li>
  );
}

function Details({ id, step }: { id: string; step: StepState }) {
  const nothing = step.input == null && step.output == null && !step.error;
  return (
    <div id={id} class="step-details">
      {nothing && <p class="faint">No input or output.</p>}
      <Value label="Input" value={step.input} />
      <Value label="Output" value={step.output} />
      {step.error && <Value label={step.error.kind} value={step.error.traceback || step.error.message} bad />}
    </div>
  );
}

function Value({ label, value, bad = false }: { label: string; value: unknown; bad?: boolean }) {
  const text = preview(value);
  if (!text) return null;
  const long = text.length > MAX_PREVIEW;
  return (
    <div class={bad ? "value bad" : "value"}>
      <span class="value-label">{label}</span>
      <pre>{long ? text.slice(0, MAX_PREVIEW) : text}</pre>
      {long && <p class="faint">The first {MAX_PREVIEW.toLocaleString("en")} of {text.length.toLocaleString("en")} characters.</p>}
    </div>
  );
}
