// --- the page asks the service that it comes from ---
let token = "";

const door = $("about").parentNode.insertBefore(element("section"), $("pick"));
door.id = "door";
door.hidden = true;
{
  const form = door.appendChild(element("form")), label = form.appendChild(element("label", "This service needs a token."));
  const row = form.appendChild(element("p")), input = row.appendChild(element("input"));
  row.append(" ", element("button", "Use it"));
  form.id = "key";
  Object.assign(input, {id: label.htmlFor = "token", type: "password", autocomplete: "off", required: true});
  form.onsubmit = e => { e.preventDefault(); token = input.value.trim(); opening = open(); };
}

async function ask(path, blob, read = answer => answer.json().catch(() => ({}))) {
  const headers = token ? {authorization: "Bearer " + token} : {};
  if (blob) headers["content-type"] = blob.type.startsWith("image/") ? blob.type : "application/octet-stream";
  let answer;
  try { answer = await fetch(path, {method: blob ? "POST" : "GET", headers, body: blob}); }
  catch { throw new Error("The service cannot be reached."); }
  if (answer.status === 401) door.hidden = false;
  const said = await (answer.ok ? read(answer) : answer.json().catch(() => ({})));
  if (!answer.ok) throw new Error(said.detail?.replace(/^image: /, "") || `The service answered ${answer.status} ${answer.statusText}`);
  return said;
}

const backEnd = {
  computed: "in the service",
  foot: [Object.assign(element("a", "API"), {href: "docs"})],
  async open() {
    const model = await ask("model");
    door.hidden = true;
    return model;
  },
  sample: i => ask(`samples/${i}`, undefined, answer => answer.blob()),
  async predict(blob, most) {
    const {results, time_ms} = await ask(`predict?top_k=${most}`, blob);
    return {top: results[0].top, labels: results[0].labels, time_ms};
  },
  async evidence(blob, label) { return (await ask(`evidence?class=${encodeURIComponent(label)}`, blob)).results[0]; },
};
