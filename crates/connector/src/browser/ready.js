// Runs in the page until the frontend can convert, or `limit` milliseconds are over.
// `window.app` alone proves nothing: the frontend then still loads its first workflow, which
// would overwrite ours.
async (limit) => {
  const end = performance.now() + limit;
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));

  // Relative, like the frontend's own calls: the server may live below a path.
  const reply = await fetch('api/object_info', { cache: 'no-store' });
  if (!reply.ok) return { stage: `object_info answered ${reply.status}` };
  const definitions = await reply.text();
  const served = Object.keys(JSON.parse(definitions));
  // FNV-1a, twice: enough to tell one set of definitions from the next.
  const digest = [0x811c9dc5, 0x9e3779b9].map((seed) => {
    let hash = seed;
    for (let i = 0; i < definitions.length; i++) hash = Math.imul(hash ^ definitions.charCodeAt(i), 0x01000193);
    return (hash >>> 0).toString(16).padStart(8, '0');
  });

  const missing = () => {
    const known = window.LiteGraph?.registered_node_types ?? {};
    return served.filter((type) => !Object.hasOwn(known, type));
  };
  const setUp = () => {
    const app = window.app;
    if (!app?.graph || !app.canvas) return 'the app is set up';
    const manager = app.extensionManager;
    if (manager?.spinner === true) return 'its start is over';
    const workflows = manager?.workflow;
    // Without persistence older frontends open no first workflow.
    const opens = !workflows || manager.setting?.get?.('Comfy.Workflow.Persist') === false;
    if (!opens && !workflows.activeWorkflow) return 'its first workflow is open';
    return null;
  };

  let stage;
  let settled = 0;
  for (; performance.now() < end; await pause(25)) {
    stage = setUp();
    if (stage) continue;
    if (missing().length === 0) break;
    stage = 'all node types are registered';
    // A definition that the frontend cannot digest is never registered: it must not keep all
    // other workflows from converting. The set-up is over, so nothing more is to come.
    if ((settled ||= performance.now()) + 3000 < performance.now()) break;
  }
  if (stage && !settled) return { stage };

  const app = window.app;
  // From here on only the worker loads workflows: a start-up dialog or an extension that loads
  // one between our two calls would have its own graph converted.
  const load = app.loadGraphData.bind(app);
  app.loadGraphData = async () => {};
  window.comfyWorkerFrames(false);
  window.comfyWorker = { load, served: new Set(served), guard: window.comfyWorkerGuard(), fresh: true };
  return {
    ready: true,
    frontend: String(window.__COMFYUI_FRONTEND_VERSION__ ?? 'unknown'),
    definitions: digest.join(''),
    unregistered: missing(),
  };
}
