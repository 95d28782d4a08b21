// Runs in a ready page: UI workflow (JSON text) in, JSON text out, one of
// {output, workflow, varies, worn}, {missing: [types]}, {refused: text}, {worn: text}. `worn`: what
// earlier workflows or this one left behind, so that the page is of no use any more.
async (text) => {
  const source = JSON.parse(text);
  const app = window.app;
  const graph = app.rootGraph ?? app.graph;
  const worker = window.comfyWorker;
  const { load, served } = worker;

  // ---- node types that cannot run here ----
  // The frontend strips these characters from types that it does not know.
  const stripped = (type) => String(type).replace(/[&<>"'`=]/g, '');
  const isKnown = (type) => Object.hasOwn(window.LiteGraph.registered_node_types, type);
  const isActive = (node) => node.mode !== 2 && node.mode !== 4; // muted, bypassed
  const definitions = [];
  const objects = (list) => (Array.isArray(list) ? list.filter((item) => item && typeof item === 'object') : []);
  const collect = (within) => {
    for (const subgraph of objects(within.definitions?.subgraphs)) {
      definitions.push(subgraph);
      collect(subgraph);
    }
  };
  collect(source);
  const local = new Set(definitions.map((subgraph) => subgraph.id));
  const groups = source.extra?.groupNodes ?? {};
  // What to tell for a node of an unknown type: of a group node, the parts that it lacks.
  const lacking = (type, seen = new Set()) => {
    const group = /^workflow[>/]/.test(type) ? groups[type.slice('workflow>'.length)] : undefined;
    if (!group || seen.has(type)) return [type];
    seen.add(type);
    const parts = objects(group.nodes).map((node) => String(node.type));
    const unknown = parts.filter((part) => !isKnown(part)).flatMap((part) => lacking(part, seen));
    return unknown.length ? unknown : [type];
  };
  const nodes = [source, ...definitions].flatMap((within) => objects(within.nodes));

  // ---- nothing of an earlier workflow ----
  const parts = objects(Object.values(groups)).flatMap((group) => objects(group.nodes));
  const types = [...nodes, ...parts].map((node) => node.type);
  const changed = worker.guard.begin(types);
  if (changed !== undefined) {
    if (!worker.fresh) return JSON.stringify({ worn: changed });
    // The frontend's own start was not quite over.
    worker.guard = window.comfyWorkerGuard();
    worker.guard.begin(types);
  }
  worker.fresh = false;
  // The frontend's stores go by the graph's id, which two workflows may share.
  const { id } = source;
  // Not `randomUUID`, which pages have on loopback only.
  const [a, b, c, d, e] = [8, 4, 3, 3, 12].map((digits) =>
    [...crypto.getRandomValues(new Uint8Array(digits))].map((byte) => (byte & 15).toString(16)).join(''),
  );
  source.id = `${a}-${b}-4${c}-8${d}-${e}`;

  const suspects = nodes.filter((node) => isActive(node) && !isKnown(node.type) && !local.has(node.type));
  // By the name that the frontend gives an unknown node; of group nodes it first changes the separator.
  const name = (node) => (typeof node.type === 'string' ? node.type : '(no type)');
  const named = new Map(
    nodes.flatMap((node) => {
      const plain = stripped(node.type);
      return [plain, plain.replace(/^workflow[/]/, 'workflow')].map((known) => [known, name(node)]);
    }),
  );
  // `12:3` is node 3 in the subgraph that node 12 stands for.
  const typeOf = (id) => {
    let node;
    let within = graph;
    for (const part of id.split(':')) {
      node = within?.getNodeById?.(part) ?? within?.getNodeById?.(Number(part));
      within = node?.subgraph;
    }
    return node?.type;
  };

  // ---- load and convert ----
  // The frontend shows a dialog for an exception in these and returns as if all was well.
  let failure;
  const undo = [];
  const overhear = (target, name, onCall) => {
    const original = target[name];
    if (typeof original !== 'function') return;
    const own = Object.hasOwn(target, name);
    target[name] = onCall(original);
    undo.push(() => (own ? (target[name] = original) : delete target[name]));
  };
  overhear(graph, 'configure', (original) => function (...values) {
    try {
      return original.apply(this, values);
    } catch (error) {
      failure ??= error;
      throw error;
    }
  });
  overhear(app, 'reportGraphLoadFailure', (original) => function (error) {
    failure ??= error;
    return original.apply(this, arguments);
  });

  let prompt;
  // Whether the next conversion may give another prompt: chance has a hand in dynamic prompts and in
  // seeds that custom nodes draw, others upload what they show (3D views) and name that file; what
  // else an extension does shows in a second call.
  let varies = false;
  window.comfyWorkerFrames(true);
  try {
    const loaded = await load(source, true, false, null, {
      showMissingNodesDialog: false,
      showMissingModelsDialog: false,
      // Newer frontends: whether model files exist is the server's business.
      skipAssetScans: true,
      silentAssetErrors: true,
      deferWarnings: true,
    });
    if (failure) throw failure;
    if (loaded === false) throw new Error('it could not be loaded');
    const notice = (original) => function (...values) {
      varies = true;
      return original.apply(this, values);
    };
    overhear(Math, 'random', notice);
    overhear(window, 'fetch', notice);
    prompt = await app.graphToPrompt();
    // A text: the prompt's values may be the widgets' own objects.
    const first = JSON.stringify(prompt.output);
    // One long text in a subgraph that is used often, or put into others by its name (`%node.text%`).
    if (first.length > 64 * 1024 * 1024) throw new Error(`its prompt would have ${first.length} characters`);
    if (!varies) {
      try {
        varies = JSON.stringify((await app.graphToPrompt()).output) !== first;
      } catch {
        varies = true;
      }
    }
    prompt.output = JSON.parse(first);
  } catch (error) {
    if (suspects.length) return JSON.stringify({ missing: suspects.flatMap((node) => lacking(name(node))) });
    return JSON.stringify({ refused: String(error?.message || error) });
  } finally {
    for (const step of undo) step();
    window.comfyWorkerFrames(false);
  }

  // Judged by what was emitted: that a muted node or an unused subgraph has an unknown type is
  // no reason to refuse.
  const missing = [];
  for (const [id, { class_type: type }] of Object.entries(prompt.output)) {
    if (type == null) {
      const seen = String(typeOf(id) ?? '(no type)');
      missing.push(...lacking(named.get(seen) ?? seen));
    } else if (!served.has(type)) {
      missing.push(type);
    }
  }
  if (missing.length) return JSON.stringify({ missing });

  const places = [source, ...definitions].map((within) => [
    objects(within.nodes),
    within === source ? graph : graph.subgraphs?.get(within.id),
  ]);
  const written = worker.guard.writtenInto(source, [...places, [parts, undefined]]);
  const worn = worker.guard.restore() ?? written;

  if (id && prompt.workflow.id === source.id) prompt.workflow.id = id;
  // The view is not restored (that would draw), so the page's own one was saved: put it right.
  const view = source.extra?.ds;
  if (view) prompt.workflow.extra.ds = view;
  else delete prompt.workflow.extra?.ds;
  return JSON.stringify({ output: prompt.output, workflow: prompt.workflow, varies, worn });
}
