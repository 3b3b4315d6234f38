/** What a run did, as a tree (ARIA APG "tree view"): arrows move, open and close. */

import { useRef, useState } from "preact/hooks";
import { between, count, duration, preview } from "../app/format";
import type { Shown, StepNode } from "../app/view";
import type { Status as RunStatus } from "../log/state";
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
  waiting: "no result yet",
};

interface Props {
  /** Of the run. */
  status: RunStatus;
  steps: StepNode[];
  count: number;
}

export function Activity({ status, steps, count: total }: Props) {
  const running = status === "running" && steps.some((node) => node.step.status === "running");
  const failed = steps.some((node) => node.step.status === "failed");
  const [choice, setChoice] = useState<boolean | null>(null);
  const open = choice ?? (running || failed);
  if (total === 1) return <Calls calls={steps} label="Steps" />;
  return (
    <div class="entry activity">
      <button type="button" class="activity-head" aria-expanded={open} onClick={() => setChoice(!open)}>
        <Chevron />
        <Status of={running ? "running" : failed ? "failed" : status} />
        <span class="step-name">{count(total, "step")}</span>
        <Timer start={steps[0]!.step.started} end={running ? null : latestEnd(steps)} />
      </button>
      {open && <Tree nodes={steps} label="Steps" />}
    </div>
  );
}

/** Steps that stand for themselves, as what a model called does. */
export function Calls({ calls, label = "Tool calls" }: { calls: StepNode[]; label?: string }) {
  return (
    <div class="entry activity">
      <Tree nodes={calls} label={label} />
    </div>
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
type Fold = "none" | "children" | "all";

interface TreeState {
  shown(node: StepNode): Fold;
  focus: string;
  set(id: string, to: Fold): void;
  select(id: string): void;
}

/** A click on a parent first adds its details, then closes it. */
const NEXT: Record<Fold, Fold> = { none: "all", children: "all", all: "none" };

function Tree({ nodes, label }: { nodes: StepNode[]; label: string }) {
  const root = useRef<HTMLUListElement>(null);
  const [chosen, setChosen] = useState<ReadonlyMap<string, Fold>>(new Map());
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
    <ul ref={root} class="tree" role="tree" aria-label={label} onKeyDown={onKeyDown}>
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
  const shown = item.dataset.shown as Fold;
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
        {step.run === null ? (
          shown !== "all" && <span class="step-input">{JSON.stringify(step.input)}</span>
        ) : (
          <>
            {step.kind !== "undefined" && <span class="step-kind">{step.kind}</span>}
            <Timer start={step.started} end={step.ended} />
          </>
        )}
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

function Details({ id, step }: { id: string; step: Shown }) {
  const nothing = step.input == null && step.output == null && !step.error;
  const [given, made] = step.run === null ? ["Arguments", "Result"] : ["Input", "Output"];
  return (
    <div id={id} class="step-details">
      {nothing && <p class="faint">No input or output.</p>}
      <Value label={given!} value={step.input} />
      {step.status === "waiting" ? <p class="faint">No result yet.</p> : <Value label={made!} value={unquoted(step.output)} />}
      {step.error && <Value label={step.error.kind} value={step.error.traceback || step.error.message} bad />}
    </div>
  );
}

/** What stands as JSON in a string: tools of the API give nothing but strings. */
function unquoted(value: unknown): unknown {
  if (typeof value !== "string" || !/^\s*[{[]/.test(value)) return value;
  try {
    return JSON.parse(value) as unknown;
  } catch {
    return value;
  }
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
