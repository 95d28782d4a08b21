// A job that has ended.

import { address, make, name } from "./elements.js";
import { stageBar, stageList, stagesOf } from "./stages.js";
import { ENDING, bytes, moment, plural, span } from "./words.js";

const THUMBNAILS = 4;

/** The row of a job that has ended; it never changes. */
export function endedRow(job) {
  const { outcome } = job;
  const stages = stagesOf(job, 0);
  const word =
    outcome.error && outcome.status !== "cancelled"
      ? outcome.error.code.replaceAll("_", " ")
      : ENDING[outcome.status];
  const took = outcome.total_ms || job.ended_at - job.accepted_at;
  const line = outcome.status === "cancelled" ? null : (outcome.error?.message ?? outcome.reason);
  const summary = make(
    "summary",
    {},
    make("span", { class: `end ${outcome.status}` }, word),
    make(
      "span",
      { class: "what" },
      name(job.id),
      job.attempt > 1 ? make("span", { class: "tag" }, `attempt ${job.attempt}`) : null,
      outcome.unrun ? make("span", { class: "tag" }, "not run") : null,
    ),
    thumbnails(job),
    stageBar(stages),
    make("span", { class: "took" }, span(took)),
    make("time", { class: "when", datetime: new Date(job.ended_at).toISOString() }, moment(job.ended_at)),
    line ? make("span", { class: "line" }, name(line.split("\n", 1)[0])) : null,
  );
  const details = make("details", {}, summary);
  // Fifty jobs with all they have to say are many elements: made when somebody looks.
  details.addEventListener("toggle", () => {
    if (details.open && details.children.length === 1) details.append(more(job, stages));
  });
  return make(
    "li",
    { class: "job", "data-key": String(job.key), "data-id": job.id, "data-status": outcome.status },
    details,
  );
}

function pictures(job) {
  return job.outcome.outputs
    .map((output, index) => ({ output, index }))
    .filter(({ output }) => output.file?.picture);
}

/** One that runs again under its old name has other pictures. */
function source(job, index) {
  return address(job.id, `outputs/${index}?${job.ended_at}`);
}

function thumbnails(job) {
  const found = pictures(job);
  const strip = make("span", { class: "thumbs" });
  for (const { index } of found.slice(0, THUMBNAILS)) {
    const image = make("img", {
      alt: "",
      loading: "lazy",
      decoding: "async",
      width: "36",
      height: "36",
      src: source(job, index),
    });
    image.addEventListener("error", () => image.remove());
    strip.append(image);
  }
  const rest = job.outcome.outputs_in_all - Math.min(found.length, THUMBNAILS);
  if (rest > 0)
    strip.append(
      make("span", { class: "rest" }, found.length > 0 ? `+${rest}` : plural(rest, "output", "outputs")),
    );
  return strip;
}

function more(job, stages) {
  const { outcome } = job;
  const parts = [];
  if (outcome.error) parts.push(failure(outcome.error));
  if (outcome.reason) parts.push(section("Why it went back to the queue", make("pre", {}, outcome.reason)));
  if (outcome.warnings.length > 0) {
    const list = make("ul", {}, ...outcome.warnings.map((text) => make("li", {}, name(text))));
    parts.push(
      section(
        plural(outcome.warnings_in_all, "warning", "warnings"),
        list,
        rest(outcome.warnings, outcome.warnings_in_all),
      ),
    );
  }
  if (outcome.outputs.length > 0) {
    const list = make(
      "ul",
      { class: "outputs" },
      ...outcome.outputs.map((output, index) => shown(job, output, index)),
    );
    parts.push(
      section(
        plural(outcome.outputs_in_all, "output", "outputs"),
        list,
        rest(outcome.outputs, outcome.outputs_in_all),
      ),
    );
  }
  if (stages.length > 0) parts.push(section("Stages", stageBar(stages), stageList(stages)));
  if (job.node_list.length > 0) {
    const cached =
      job.nodes_cached > 0
        ? make("p", { class: "count" }, `${plural(job.nodes_cached, "node", "nodes")} from ComfyUI's cache`)
        : null;
    const rows = job.node_list.map((node) =>
      make(
        "li",
        { class: node.id === outcome.error?.node ? "failed" : null },
        make("span", { class: "label" }, name(node.title), " ", make("span", { class: "id" }, name(node.id))),
        make("span", { class: "time" }, span(node.ms)),
      ),
    );
    parts.push(section("Longest nodes", make("ol", { class: "nodes whole-list" }, ...rows), cached));
  }
  if (parts.length === 0) parts.push(make("p", { class: "empty" }, "Nothing more is known of it."));
  return make("div", { class: "more" }, ...parts);
}

function section(title, ...children) {
  return make("section", {}, make("h4", {}, title), ...children);
}

function rest(some, all) {
  return all > some.length
    ? make("p", { class: "count" }, `${all - some.length} more in its result.json`)
    : null;
}

function failure(error) {
  const facts = make(
    "p",
    { class: "count" },
    [error.code, `in the stage “${error.stage}”`, error.node ? "node " : null].filter(Boolean).join(" · "),
    error.node ? name(error.node) : null,
  );
  const parts = [
    facts,
    make("pre", { class: "message", tabindex: "0", "aria-label": "message" }, error.message),
  ];
  if (error.traceback)
    parts.push(
      make("h5", {}, "Traceback"),
      make("pre", { class: "traceback", tabindex: "0", "aria-label": "traceback" }, error.traceback),
    );
  if (error.node_errors)
    parts.push(
      make("h5", {}, "ComfyUI's node_errors"),
      make("pre", { tabindex: "0", "aria-label": "node errors" }, error.node_errors),
    );
  return section("Error", ...parts);
}

function shown(job, { node, kind, text, file }, index) {
  if (!file) return make("li", {}, make("span", { class: "kind" }, kind), make("pre", {}, text ?? ""));
  const facts = make(
    "div",
    { class: "facts-of" },
    name(file.filename),
    make("span", { class: "count" }, `${kind} · ${bytes(file.size)} · node `, name(node)),
    make("code", {}, name(file.uri)),
  );
  if (!file.picture) return make("li", {}, make("span", { class: "kind" }, kind), facts);
  const image = make("img", { alt: "", loading: "lazy", width: "96", height: "96", src: source(job, index) });
  const link = make(
    "a",
    {
      href: source(job, index),
      target: "_blank",
      rel: "noopener noreferrer",
      "aria-label": `open ${file.filename}`,
    },
    image,
  );
  image.addEventListener("error", () => link.replaceWith(make("span", { class: "kind" }, "not there")));
  return make("li", {}, link, facts);
}
