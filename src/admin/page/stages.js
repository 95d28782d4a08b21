// How long a job has been in each stage.

import { make, say } from "./elements.js";
import { SPENT, running, span } from "./words.js";

export function stageBar(stages) {
  const bar = make("div", { class: "stages", "aria-hidden": "true" });
  showStages(bar, stages);
  return bar;
}

export function showStages(bar, stages) {
  while (bar.children.length > stages.length) bar.lastChild.remove();
  stages.forEach(({ stage, ms, now, failed }, index) => {
    const part = bar.children[index] ?? bar.appendChild(make("span"));
    part.className = `stage ${stage}${now ? " now" : ""}${failed ? " failed" : ""}`;
    part.style.flexGrow = String(Math.max(ms, 1));
  });
}

export function stageList(stages) {
  const list = make("dl", { class: "spent" });
  showStageList(list, stages);
  return list;
}

export function showStageList(list, stages) {
  while (list.children.length > stages.length) list.lastChild.remove();
  stages.forEach(({ stage, ms, now }, index) => {
    const part = list.children[index] ?? list.appendChild(make("div", {}, make("dt"), make("dd")));
    part.className = `of ${stage}`;
    say(part.firstChild, SPENT[stage]);
    say(part.lastChild, now ? running(ms) : span(ms));
  });
}

/** The stages with the one that lasts. */
export function stagesOf(job, now) {
  const failedIn = {
    accept: "queued",
    stage: "staged",
    convert: "converted",
    post: "waited",
    run: "executed",
    collect: "uploaded",
    upload: "uploaded",
  };
  const error = job.outcome?.status === "failed" ? job.outcome.error : null;
  const stages = job.stages.map(({ stage, ms }) => ({
    stage,
    ms,
    failed: error && failedIn[error.stage] === stage,
  }));
  if (job.stage) {
    const found = stages.find(({ stage }) => stage === job.stage.stage);
    const spent = Math.max(0, now - job.stage.since);
    if (found) Object.assign(found, { ms: found.ms + spent, now: true });
    else stages.push({ stage: job.stage.stage, ms: spent, now: true });
  }
  return stages;
}
