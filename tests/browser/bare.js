// A workflow (JSON text) as a person's browser opens and queues it; {output, workflow} or {error}, as JSON text.
async (text) => {
  try {
    await window.app.loadGraphData(JSON.parse(text), true, true);
    return JSON.stringify(await window.app.graphToPrompt());
  } catch (error) {
    return JSON.stringify({ error: String(error) });
  }
}
