// Runs in every document before its own scripts.
{
  // A dialog would stop the page until somebody answers it.
  window.alert = () => {};
  window.confirm = () => false;
  window.prompt = () => null;

  // Nobody sees this page: its drawing loops would take a tenth of a core forever. While the worker
  // waits for workflows a frame comes once a second.
  const waiting = new Map();
  let handles = 0;
  let pause = 16;
  let timer = null;
  const draw = () => {
    timer = null;
    const due = [...waiting.values()];
    waiting.clear();
    const now = performance.now();
    for (const callback of due) {
      try {
        callback(now);
      } catch (error) {
        reportError(error);
      }
    }
  };
  window.requestAnimationFrame = (callback) => {
    waiting.set(++handles, callback);
    timer ??= setTimeout(draw, pause);
    return handles;
  };
  window.cancelAnimationFrame = (handle) => waiting.delete(handle);
  window.comfyWorkerFrames = (often) => {
    pause = often ? 16 : 1000;
    if (often && timer !== null) {
      clearTimeout(timer);
      timer = setTimeout(draw, pause);
    }
  };
}
