// Runs in every document before its own scripts, so what it uses is nobody else's yet.
//
// A page converts the workflows of many jobs, and the frontend keeps node types, definitions and
// classes for as long as the page lives. `comfyWorkerGuard()` notes what a ready page is made of; then
// `restore` removes what a workflow added on purpose, and tells what it changed beside that.
{
  const { ownKeys, getPrototypeOf, getOwnPropertyDescriptor } = Reflect;
  const { is, hasOwn } = Object;
  const stringify = JSON.stringify;
  const isFunction = (value) => typeof value === 'function';
  const isObject = (value) => isFunction(value) || (typeof value === 'object' && value !== null);
  const UUID = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/i;
  // Types that the frontend makes of a workflow's own definitions.
  const isLocal = (type) => typeof type === 'string' && (UUID.test(type) || /^workflow[>/]/.test(type));

  // ---- objects that stay as they are ----
  const watcher = () => {
    const watched = new Map();
    const watch = (object, name, counts = () => true) => {
      if (!isObject(object) || watched.has(object)) return false;
      const values = [];
      const accessors = [];
      const keys = ownKeys(object).filter(counts);
      for (const key of keys) {
        const found = getOwnPropertyDescriptor(object, key);
        if ('value' in found) values.push([key, found.value]);
        else accessors.push([key, found.get, found.set]);
      }
      watched.set(object, { name, values, accessors, counts, count: keys.length, prototype: getPrototypeOf(object) });
      return true;
    };
    // What a class and those that it extends consist of. A method is an object, too.
    const watchClass = (one, name) => {
      for (let at = one; isFunction(at); at = getPrototypeOf(at)) {
        if (watched.has(at)) break;
        watchMembers(at, name);
      }
      for (let at = one.prototype; isObject(at); at = getPrototypeOf(at)) {
        if (watched.has(at)) break;
        watchMembers(at, name);
      }
    };
    const watchMembers = (object, name, counts) => {
      if (!watch(object, name, counts)) return;
      for (const [key, value] of watched.get(object).values) {
        if (isFunction(value)) watch(value, `${name}.${String(key)}`);
      }
    };
    const difference = (object, { values, accessors, counts, count, prototype }) => {
      if (getPrototypeOf(object) !== prototype) return 'its prototype';
      for (const [key, value] of values) if (!is(object[key], value)) return key;
      for (const [key, get, set] of accessors) {
        const found = getOwnPropertyDescriptor(object, key);
        if (found?.get !== get || found.set !== set) return key;
      }
      const keys = ownKeys(object).filter(counts);
      if (keys.length === count) return undefined;
      const known = new Set([...values, ...accessors].map(([key]) => key));
      return keys.find((key) => !known.has(key));
    };
    const changed = () => {
      for (const [object, noted] of watched) {
        const key = difference(object, noted);
        if (key !== undefined) return `${noted.name}.${String(key)}`;
      }
      return undefined;
    };
    return { watch, watchClass, watchMembers, changed };
  };

  // ---- lists that workflows add to ----
  // Entries for a workflow's own definitions go; another that is gone or exchanged is put back, if
  // `isShared` it is told. What the frontend's code adds later is kept.
  const list = (name, read, { isShared = false, isOurs = isLocal }) => {
    const first = read();
    if (!isObject(first)) return () => undefined;
    const noted = new Map(ownKeys(first).flatMap((key) => (isOurs(key, first[key]) ? [] : [[key, first[key]]])));
    return () => {
      const now = read();
      let told = isShared && now !== first ? name : undefined;
      for (const key of ownKeys(now)) {
        if (noted.has(key)) continue;
        if (isOurs(key, now[key])) delete now[key];
        else noted.set(key, now[key]);
      }
      for (const [key, value] of noted) {
        if (hasOwn(now, key) && is(now[key], value)) continue;
        now[key] = value;
        if (isShared) told ??= `${name}.${String(key)}`;
      }
      return told;
    };
  };

  // Of the page's live objects, what a workflow may be written into.
  const isPlain = (value) => {
    const prototype = getPrototypeOf(value);
    return prototype === Object.prototype || prototype === Array.prototype || prototype === null;
  };
  const ORDINARY = new Set([
    'pos', 'size', 'flags', 'inputs', 'outputs', 'properties', 'widgets_values', 'widgets_values_named',
  ]);
  // Older frontends write a node's fields into what the live node has under that name, which may be
  // everybody's. What they only put there is the field itself.
  const fieldWrittenInto = (source, live) => {
    for (const [key, value] of Object.entries(source)) {
      if (!isObject(value) || ORDINARY.has(key)) continue;
      const found = live?.[key];
      if (live && !isObject(found)) continue;
      if (!live || !isPlain(found) || ownKeys(found).some((name) => !hasOwn(value, name))) return key;
    }
    return undefined;
  };

  // What every workflow has; the graph takes these in ways of its own.
  const GRAPH = new Set([
    'id', 'revision', 'version', 'state', 'config', 'extra', 'nodes', 'links', 'groups', 'definitions', 'reroutes',
    'floatingLinks', 'last_node_id', 'last_link_id',
  ]);

  window.comfyWorkerGuard = () => {
    const { app, LiteGraph } = window;
    const rootOf = () => app.rootGraph ?? app.graph;
    const graph = rootOf();
    const { watch, watchClass, watchMembers, changed } = watcher();

    // ---- the language and the document ----
    for (const key of ownKeys(window)) {
      const value = getOwnPropertyDescriptor(window, key)?.value;
      if (isFunction(value) && isObject(value.prototype)) watchClass(value, String(key));
    }
    for (const key of ['JSON', 'Math', 'Reflect', 'Atomics', 'Intl']) watch(window[key], key);

    // ---- the frontend's code ----
    for (const [name, module] of Object.entries(window.comfyAPI ?? {})) {
      if (!isObject(module)) continue;
      for (const [key, value] of Object.entries(module)) {
        if (isFunction(value)) watchClass(value, `${name}.${key}`);
      }
    }
    for (const holder of [LiteGraph, LiteGraph.Classes ?? {}]) {
      for (const [key, value] of Object.entries(holder)) if (isFunction(value)) watchClass(value, key);
    }
    for (const one of [graph, app, app.canvas]) watchClass(one.constructor, one.constructor.name);
    // Which slots fit which types is for the search alone, and follows every node that is made.
    watchMembers(LiteGraph, 'LiteGraph', (key) => !/^(registered_)?slot_/.test(String(key)));
    for (const key of ['node_types_by_file_extension', 'Globals', 'searchbox_extras']) {
      watch(LiteGraph[key], `LiteGraph.${key}`);
    }
    for (const [type, one] of Object.entries(LiteGraph.registered_node_types)) {
      // Not those of a workflow that the frontend opened on its own.
      if (!isLocal(type)) watchClass(one, type);
    }

    // ---- node types and definitions ----
    const page = document.querySelector('#vue-app')?.__vue_app__;
    const definitions = page?.config?.globalProperties?.$pinia?._s?.get('nodeDef');
    const lists = [
      list('node type', () => LiteGraph.registered_node_types, { isShared: true }),
      list('node definition', () => definitions?.nodeDefsByName, { isShared: true }),
      list('node name', () => definitions?.nodeDefsByDisplayName, {
        isOurs: (_, definition) => isLocal(definition?.name),
      }),
    ];

    // All that the graph has under some name, from its classes, too.
    const inGraph = new Set();
    for (let at = graph; at; at = getPrototypeOf(at)) for (const key of ownKeys(at)) inGraph.add(key);

    // ---- the definitions of the types that a workflow uses ----
    const nodeData = new Map();
    const used = new Set();
    const textOf = (type) => {
      const types = LiteGraph.registered_node_types;
      if (!hasOwn(types, type)) return undefined;
      try {
        return stringify(types[type].nodeData);
      } catch {
        return undefined;
      }
    };
    const changedDefinition = () => {
      for (const type of used) {
        if (isLocal(type)) continue;
        const text = textOf(type);
        if (!nodeData.has(type)) nodeData.set(type, text);
        else if (nodeData.get(type) !== text) return `the definition of ${type}`;
      }
      return undefined;
    };

    // What is not as it was, if anything.
    const restore = () => {
      const told = lists.map((each) => each());
      if (rootOf() !== graph) return 'the graph';
      return told.find(Boolean) ?? changed() ?? changedDefinition();
    };

    // What a loaded workflow was written into; `parts`: [nodes, the graph that they are in].
    const writtenInto = (source, parts) => {
      for (const key of Object.keys(source)) {
        if (!GRAPH.has(key) && inGraph.has(key)) return `the graph's ${key}`;
        // Shadows nothing, but would stay.
        if (!GRAPH.has(key) && hasOwn(graph, key)) delete graph[key];
      }
      if (graph.id !== source.id) return "the graph's id";
      for (const [nodes, within] of parts) {
        for (const node of nodes) {
          const live = within?.getNodeById?.(node.id);
          const key = fieldWrittenInto(node, live);
          if (key !== undefined) return `a node's ${key}`;
        }
      }
      return undefined;
    };

    return {
      // Before a workflow whose nodes have these types is loaded.
      begin: (types) => {
        used.clear();
        for (const type of types) used.add(type);
        return restore();
      },
      restore,
      writtenInto,
    };
  };
}
