// As much of a browser as the chat page's script needs to run under node: elements that hold text, and no network.
class Words {
  constructor(data) { this.data = data; }
  appendData(more) { this.data += more; }
  get textContent() { return this.data; }
}
class Element {
  constructor(tag) {
    Object.assign(this, {tagName: tag.toUpperCase(), childNodes: [], className: "", style: {}, hidden: false, value: ""});
    this.classList = {toggle() {}};
  }
  get children() { return this.childNodes.filter((node) => node instanceof Element); }
  get lastElementChild() { return this.children.at(-1) ?? null; }
  get firstChild() { return this.childNodes[0]; }
  get textContent() { return this.childNodes.map((node) => node.textContent).join(""); }
  set textContent(text) { this.replaceChildren(...(text ? [new Words(text)] : [])); }
  append(...nodes) { for (const node of nodes) this.insertBefore(node, null); }
  prepend(node) { this.insertBefore(node, this.firstChild); }
  insertBefore(node, next) {
    node.parentNode = this;
    this.childNodes.splice(next ? this.childNodes.indexOf(next) : this.childNodes.length, 0, node);
  }
  replaceChildren(...nodes) { this.childNodes = []; this.append(...nodes); }
  remove() { this.parentNode.childNodes = this.parentNode.childNodes.filter((node) => node !== this); }
  addEventListener() {}
  focus() {}
}
class WebSocket {
  static OPEN = 1;
  readyState = 1;
  send() {}
  addEventListener() {}
}
const byId = new Map();
const document = {
  createElement: (tag) => new Element(tag),
  createTextNode: (text) => new Words(text),
  getElementById: (id) => byId.get(id) ?? byId.set(id, new Element("div")).get(id),
  querySelector: () => ({content: "/ws/chat"}),
};
const location = new URL(process.argv[2] ?? "http://localhost/");
const window = {history: {replaceState: (state, title, address) => { location.href = String(address); }}};
const matchMedia = () => ({matches: false});
const requestAnimationFrame = () => {}, setInterval = () => {}, addEventListener = () => {};
