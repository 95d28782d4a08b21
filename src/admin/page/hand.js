// A job in hand.

import { address, make, name, say } from "./elements.js";
import { showStageList, showStages, stageBar, stageList, stagesOf } from "./stages.js";
import { STAGE, plural, running, span } from "./words.js";

/** A card that follows a job; `cancel` is called with it and its button. */
export class HandCard {
  constructor(job, cancel) {
    this.job = job;
    this.nodes = new Map();
    this.title = make("h3", {}, name(job.id));
    this.attempt = make("span", { class: "tag", hidden: true });
    this.word = make("span", { class: "word" });
    this.time = make("span", { class: "time" });
    this.button = make("button", { type: "button", class: "command", hidden: true }, "Cancel");
    this.button.setAttribute("aria-label", `Cancel ${job.id}`);
    this.button.addEventListener("click", () => cancel(this.job, this.button));
    this.bar = make("progress", { max: "1", "aria-label": "progress of the job" });
    this.percent = make("span", { class: "percent" });
    this.stages = stageBar([]);
    this.spent = stageList([]);
    this.image = make("img", { alt: "preview of the picture in the making" });
    this.preview = make("figure", { class: "preview", hidden: true }, this.image);
    this.image.addEventListener("error", () => {
      this.preview.hidden = true;
    });
    this.image.addEventListener("load", () => {
      this.preview.hidden = false;
    });
    this.list = make("ol", { class: "nodes", tabindex: "0", "aria-label": "nodes" });
    this.count = make("p", { class: "count" });
    this.run = make("div", { class: "run", hidden: true }, this.list, this.count);
    this.whole = make("div", { class: "whole", hidden: true }, this.bar, this.percent);
    this.element = make(
      "article",
      { class: "card job", "data-key": String(job.key), "data-id": job.id },
      make("div", { class: "head" }, this.title, this.attempt, this.word, this.time, this.button),
      this.whole,
      make("div", { class: "body" }, this.preview, this.run),
      this.stages,
      this.spent,
    );
  }

  /** Takes what has changed. */
  update(job) {
    const started = this.job.preview;
    this.job = job;
    this.attempt.hidden = job.attempt < 2;
    say(this.attempt, `attempt ${job.attempt}`);
    for (const node of job.node_list) this.node(node);
    for (const [number, row] of this.nodes) {
      if (number < job.first_node) {
        row.element.remove();
        this.nodes.delete(number);
      }
    }
    this.run.hidden = this.nodes.size === 0;
    say(
      this.count,
      [
        job.node_count === null
          ? null
          : `node ${Math.min(job.nodes_begun, job.node_count)} of ${job.node_count}`,
        job.uploads ? `${job.uploads.done} of ${plural(job.uploads.of, "file", "files")} uploaded` : null,
      ]
        .filter(Boolean)
        .join(" · "),
    );
    if (job.preview !== null && (job.preview !== started || !this.image.hasAttribute("src"))) {
      this.image.src = address(job.id, `preview?${job.preview}`);
    }
    // Before it runs there is no progress, only stages.
    this.whole.hidden = this.run.hidden;
    say(this.percent, `${Math.floor(job.progress * 100)} %`);
    this.bar.value = job.progress;
  }

  node(node) {
    let row = this.nodes.get(node.number);
    if (!row) {
      row = {
        mark: make("span", { class: "mark", "aria-hidden": "true" }),
        steps: make("span", { class: "steps" }),
        time: make("span", { class: "time" }),
        state: make("span", { class: "unseen" }),
      };
      row.bar = make("progress", { max: "1", "aria-label": "steps", hidden: true });
      row.element = make(
        "li",
        {},
        row.mark,
        make("span", { class: "label" }, name(node.title), " ", make("span", { class: "id" }, name(node.id))),
        row.state,
        row.steps,
        row.time,
        row.bar,
      );
      this.nodes.set(node.number, row);
      const near = this.list.scrollTop + this.list.clientHeight >= this.list.scrollHeight - 60;
      this.list.append(row.element);
      // Anyone who has scrolled up reads there.
      if (near) row.follow = true;
    }
    row.told = node;
    const runs = node.ms === null;
    row.element.classList.toggle("runs", runs);
    say(row.mark, runs ? "▸" : "✓");
    say(row.state, runs ? "running" : "done");
    const steps = node.max > 1 && node.value !== null;
    say(row.steps, steps ? `${node.value}/${node.max}` : "");
    row.bar.hidden = !(steps && runs);
    if (steps) row.bar.value = Math.min(1, node.value / node.max);
    if (row.follow) {
      row.follow = false;
      requestAnimationFrame(() => {
        this.list.scrollTop = this.list.scrollHeight;
      });
    }
  }

  /** Once a second, and after each change: what depends on the clock. */
  tick(now) {
    const { job } = this;
    say(this.word, job.outcome ? "answering" : (STAGE[job.stage?.stage] ?? "taken"));
    say(this.time, running((job.ended_at ?? now) - job.accepted_at));
    for (const { told, time } of this.nodes.values()) {
      say(time, told.ms === null ? running(now - told.began) : span(told.ms));
    }
    const stages = stagesOf(job, now);
    showStages(this.stages, stages);
    showStageList(this.spent, stages);
  }
}
