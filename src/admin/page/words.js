// Figures and words for people.

export const STATE = {
  booting: "booting",
  ready: "ready",
  store_away: "store away",
  disk_full: "disk full",
  draining: "draining",
};

export const STAGE = {
  queued: "in the queue",
  staged: "fetching inputs",
  converted: "converting",
  waited: "waiting for ComfyUI",
  executed: "running",
  uploaded: "uploading",
};

/** Stages as things that took so long. */
export const SPENT = {
  queued: "queue",
  staged: "inputs",
  converted: "conversion",
  waited: "wait",
  executed: "execution",
  uploaded: "upload",
};

export const ENDING = {
  succeeded: "done",
  failed: "failed",
  cancelled: "cancelled",
  handed_back: "handed back",
};

/** Milliseconds, to be read at a glance: 31 ms, 2.5 s, 1:04, 3:12:09. */
export function span(ms) {
  if (!(ms >= 0)) return "0 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 59_950) return `${(ms / 1000).toFixed(1)} s`;
  return clock(ms);
}

/** The same for what still runs: it must not jump. */
export function running(ms) {
  return ms < 60_000 ? `${Math.max(0, Math.floor(ms / 1000))} s` : clock(ms);
}

function clock(ms) {
  const seconds = Math.floor(ms / 1000);
  const two = (number) => String(number).padStart(2, "0");
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  return hours > 0 ? `${hours}:${two(minutes)}:${two(seconds % 60)}` : `${minutes}:${two(seconds % 60)}`;
}

/** How long the worker is up: 12 s, 4 min, 3 h 20 min, 5 d 2 h. */
export function uptime(ms) {
  const minutes = Math.floor(ms / 60_000);
  if (minutes < 1) return `${Math.max(0, Math.floor(ms / 1000))} s`;
  if (minutes < 60) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (count >= 1024 && unit < units.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${units[unit]}`;
}

const TIME = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const DAY = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });

/** A moment; another day is named. */
export function moment(ms) {
  const then = new Date(ms);
  const time = TIME.format(then);
  return then.toDateString() === new Date().toDateString() ? time : `${DAY.format(then)} ${time}`;
}

export function plural(count, one, many) {
  return `${count} ${count === 1 ? one : many}`;
}
