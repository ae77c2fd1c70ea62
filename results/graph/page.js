// page.js -- draws the document that stands in #data (see page.h for its members) and lets people
// walk through it. Plain script, no library, no network.
//
// All text reaches the browser through textContent: nothing in a log can become markup. A tab is
// drawn when it is first looked at; its edges are one path, those of the selected node a second
// layer, so that a graph of thousands of nodes stays quick.
'use strict';
(function () {
  const data = JSON.parse(document.getElementById('data').textContent);
  const byId = (id) => document.getElementById(id);
  const SVG = 'http://www.w3.org/2000/svg';
  const HEIGHT = 36;             // of a box, as in layout.h
  const ZOOM_MIN = 0.02, ZOOM_MAX = 6, FAR = 0.4; // below FAR text cannot be read and is left out
  const state = { tab: 0, node: -1, code: -1, table: false, query: '', hits: [], hit: -1 };
  const camera = { x: 0, y: 0, scale: 1 };

  // ---- helpers ----

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes || {})) {
      if (key === 'onclick') element.addEventListener('click', value);
      else element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  }

  function makeSvg(tag, attributes) {
    const element = document.createElementNS(SVG, tag);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  }

  // Appends text with the search's hits marked.
  function appendMarked(parent, text) {
    const lower = state.query ? text.toLowerCase() : '';
    let from = 0;
    for (let at; state.query && (at = lower.indexOf(state.query, from)) >= 0; from = at + state.query.length) {
      parent.append(text.slice(from, at), make('mark', {}, text.slice(at, at + state.query.length)));
    }
    parent.append(text.slice(from));
    return parent;
  }

  const hue = (code) => `hsl(${(code * 67 + 20) % 360} 65% 50%)`;
  const detail = (item, key) => (item.d.find((row) => row[0] === key) || ['', ''])[1];
  const shortened = (text, width, perLetter) => {
    const letters = Math.max(3, Math.floor((width - 14) / perLetter));
    return text.length > letters ? text.slice(0, letters - 1) + '\u2026' : text;
  };

  // ---- what the document does not say itself: users, names, text to search in ----

  for (const tab of data.tabs) {
    tab.byName = new Map();
    for (const node of tab.nodes) node.users = [];
    tab.nodes.forEach((node, index) => {
      tab.byName.set(node.n, index);
      for (const input of node.i) tab.nodes[input].users.push(index);
    });
  }

  function searchText(item) {
    if (item.lower === undefined) {
      const parts = [item.n || item.name, item.s || '', item.text || ''];
      for (const row of item.d) parts.push(row[1]);
      for (const code of item.k || []) parts.push(data.codes[code].name);
      item.lower = parts.join('\n').toLowerCase();
    }
    return item.lower;
  }

  // ---- picture ----

  function edgePath(from, to) {
    const x0 = from.x, y0 = from.y + HEIGHT / 2, x1 = to.x, y1 = to.y - HEIGHT / 2;
    const bend = Math.max(16, Math.min(60, Math.abs(y1 - y0) / 2));
    // A long edge between boxes of one column would run through those between: it swings out.
    if (y1 - y0 > 4 * HEIGHT && Math.abs(x1 - x0) < 60) {
      const out = Math.max(x0 + from.w / 2, x1 + to.w / 2) + Math.min(260, 30 + (y1 - y0) / 8);
      return `M${x0},${y0}C${x0},${y0 + bend} ${out},${y0 + bend} ${out},${(y0 + y1) / 2}S${x1},${y1 - bend} ${x1},${y1}`;
    }
    return `M${x0},${y0}C${x0},${y0 + bend} ${x1},${y1 - bend} ${x1},${y1}`;
  }

  function drawNode(node, index) {
    const group = makeSvg('g', { class: 'node ' + node.c, transform: `translate(${node.x},${node.y})`, 'data-index': index });
    group.append(makeSvg('rect', { class: 'box', x: -node.w / 2, y: -HEIGHT / 2, width: node.w, height: HEIGHT }));
    if (node.k.length) {
      const stripe = makeSvg('rect', { class: 'stripe', x: -node.w / 2, y: -HEIGHT / 2, width: 5, height: HEIGHT });
      stripe.style.fill = hue(node.k[0]);
      group.append(stripe);
    }
    const name = makeSvg('text', { y: node.s ? -3 : 4 });
    name.textContent = shortened(node.n, node.w, 7.3);
    group.append(name);
    if (node.s) {
      const second = makeSvg('text', { class: 'second', y: 11 });
      second.textContent = shortened(node.s, node.w, 5.9);
      group.append(second);
    }
    return group;
  }

  function drawPicture() {
    const tab = data.tabs[state.tab], paths = [];
    byId('boxes').replaceChildren(...(tab ? tab.nodes.map(drawNode) : []));
    if (tab) for (const node of tab.nodes) for (const input of node.i) paths.push(edgePath(tab.nodes[input], node));
    byId('edges').setAttribute('d', paths.join(''));
    byId('near').replaceChildren();
  }

  function applyCamera() {
    byId('world').setAttribute('transform', `translate(${camera.x},${camera.y}) scale(${camera.scale})`);
    byId('picture').classList.toggle('far', camera.scale < FAR);
  }

  function fit() {
    const tab = data.tabs[state.tab], box = byId('stage').getBoundingClientRect();
    if (!tab || !tab.nodes.length || !box.width) return;
    const across = (box.width - 40) / Math.max(tab.width, 1), down = (box.height - 60) / Math.max(tab.height, 1);
    // A tall graph is shown from its top at a size that can be read, one that is a little too wide its middle.
    const least = across > FAR / 1.5 ? FAR : ZOOM_MIN;
    camera.scale = Math.max(Math.min(across, down, 1.25), Math.min(across, 0.8), least);
    camera.x = (box.width - tab.width * camera.scale) / 2;
    camera.y = Math.max(20, (box.height - 30 - tab.height * camera.scale) / 2);
    applyCamera();
  }

  function zoom(factor, x, y) {
    const scale = Math.min(ZOOM_MAX, Math.max(ZOOM_MIN, camera.scale * factor)), ratio = scale / camera.scale;
    camera.x = x - (x - camera.x) * ratio;
    camera.y = y - (y - camera.y) * ratio;
    camera.scale = scale;
    applyCamera();
  }

  function centre(node) {
    const box = byId('stage').getBoundingClientRect();
    camera.scale = Math.max(camera.scale, 0.7);
    camera.x = box.width / 2 - node.x * camera.scale;
    camera.y = box.height / 2 - node.y * camera.scale;
    applyCamera();
  }

  function isVisible(node) {
    const box = byId('stage').getBoundingClientRect();
    const x = camera.x + node.x * camera.scale, y = camera.y + node.y * camera.scale;
    return x > 30 && y > 30 && x < box.width - 30 && y < box.height - 40 && camera.scale >= FAR;
  }

  // ---- what is marked in the picture and the table ----

  function showMarks() {
    const tab = data.tabs[state.tab], related = new Set(), hits = new Set();
    if (!tab) return;
    const selected = tab.nodes[state.node];
    if (selected) for (const other of [...selected.i, ...selected.users]) related.add(other);
    if (state.code >= 0) for (const [t, n] of data.codes[state.code].nodes) if (t === state.tab) related.add(n);
    for (const [t, n] of state.hits) if (t === state.tab) hits.add(n);
    const mark = (element, index) => {
      element.classList.toggle('related', related.has(index));
      element.classList.toggle('hit', hits.has(index));
      element.classList.toggle('selected', index === state.node);
    };
    [...byId('boxes').children].forEach(mark);
    byId('table').querySelectorAll('tbody tr').forEach(mark);
    showNear(state.node);
  }

  function showNear(index) {
    const tab = data.tabs[state.tab], node = tab && tab.nodes[index], paths = [];
    if (node) {
      for (const input of node.i) paths.push(edgePath(tab.nodes[input], node));
      for (const user of node.users) paths.push(edgePath(node, tab.nodes[user]));
    }
    byId('near').replaceChildren(...paths.map((d) => makeSvg('path', { d })));
  }

  function describe(index) {
    const tab = data.tabs[state.tab], node = tab.nodes[index], parts = [node.n];
    if (node.s) parts.push(node.s);
    if (node.k.length) parts.push('kernel ' + node.k.map((k) => data.codes[k].name).join(', '));
    if (detail(node, 'source')) parts.push(detail(node, 'source'));
    if (node.users.length) parts.push('used by ' + node.users.slice(0, 8).map((u) => tab.nodes[u].n).join(', '));
    return parts.join('   \u00b7   ');
  }

  // ---- table ----

  function drawTable() {
    const tab = data.tabs[state.tab];
    if (!tab) return;
    const names = (list) => list.map((index) => tab.nodes[index].n).join(', ');
    const head = make('tr', {}, ...['name', 'operation and shape', 'inputs', 'used by', 'kernels', 'source']
      .map((title) => make('th', { scope: 'col' }, title)));
    const body = make('tbody');
    tab.nodes.forEach((node, index) => {
      const cells = [node.n, node.s, names(node.i), names(node.users), node.k.map((k) => data.codes[k].name).join(', '),
        detail(node, 'source')];
      const row = make('tr', { 'data-index': index, tabindex: 0 });
      for (const cell of cells) row.append(appendMarked(make('td', { class: 'mono' }), cell));
      body.append(row);
    });
    byId('table').replaceChildren(make('table', {}, make('thead', {}, head), body));
  }

  // ---- side panels ----

  function drawNav() {
    const perTab = new Map(), perCode = new Map(), items = [];
    for (const [t, n] of state.hits) {
      const map = t >= 0 ? perTab : perCode, key = t >= 0 ? t : n;
      map.set(key, (map.get(key) || 0) + 1);
    }
    if (data.tabs.length) items.push(make('h3', {}, 'Graphs and code'));
    data.tabs.forEach((tab, index) => {
      const button = make('button', { 'aria-current': String(index === state.tab), title: tab.title,
        onclick: () => openTab(index) }, make('span', {}, tab.title), make('span', { class: 'count' }, String(tab.nodes.length)));
      if (perTab.has(index)) button.append(make('span', { class: 'badge' }, String(perTab.get(index))));
      items.push(button);
    });
    if (data.codes.length) items.push(make('h3', {}, 'Kernels'));
    data.codes.forEach((code, index) => {
      const button = make('button', { class: 'kernel-item', 'aria-current': String(index === state.code), title: code.name,
        onclick: () => selectCode(index) }, make('span', {}, code.name));
      const swatch = make('span', { class: 'swatch' });
      swatch.style.background = hue(index);
      button.append(swatch);
      if (perCode.has(index)) button.append(make('span', { class: 'badge' }, '\u2022'));
      items.push(button);
    });
    byId('nav').replaceChildren(...items);
  }

  // Comments, strings, numbers and the words of Python and C++ that stand out.
  const TOKENS = new RegExp(['(#.*|//.*)', '("(?:[^"\\\\\\n]|\\\\.)*"|\'(?:[^\'\\\\\\n]|\\\\.)*\')',
    '\\b(def|return|for|in|if|else|import|from|as|with|class|while|auto|const|float|double|int|int64_t|int32_t|bool|void|static_cast|extern|None|True|False)\\b',
    '\\b(\\d[\\w.]*)'].join('|'), 'g');
  const TOKEN_CLASSES = ['comment', 'string', 'word', 'number'];

  function highlighted(text) {
    const pre = make('pre', { tabindex: 0 });
    let from = 0;
    for (const match of text.matchAll(TOKENS)) {
      appendMarked(pre, text.slice(from, match.index));
      const kind = TOKEN_CLASSES[[1, 2, 3, 4].findIndex((group) => match[group] !== undefined)];
      pre.append(appendMarked(make('span', { class: kind }), match[0]));
      from = match.index + match[0].length;
    }
    return appendMarked(pre, text.slice(from));
  }

  function rows(item) {
    const list = make('dl');
    for (const [key, value] of item.d) list.append(make('dt', {}, key), appendMarked(make('dd'), value));
    return list;
  }

  function chips(title, targets) {
    if (!targets.length) return [];
    const box = make('div', { class: 'chips' });
    for (const target of targets) box.append(make('button', { onclick: target.go }, target.text));
    return [make('h3', {}, title), box];
  }

  const nodeChip = (tab, index, withTab) => ({
    text: (withTab ? data.tabs[tab].title + ': ' : '') + data.tabs[tab].nodes[index].n,
    go: () => selectNode(tab, index),
  });

  function codeBlock(index, open) {
    const code = data.codes[index], block = make('details', { class: 'code' });
    block.append(make('summary', {}, code.name), rows(code), highlighted(code.text));
    block.open = open;
    return block;
  }

  function drawDetails() {
    const panel = byId('details'), tab = data.tabs[state.tab], parts = [];
    if (state.code >= 0) {
      const code = data.codes[state.code];
      parts.push(appendMarked(make('h2'), code.name), rows(code),
        ...chips('Covers these nodes', code.nodes.map(([t, n]) => nodeChip(t, n, true))), highlighted(code.text));
    } else if (tab && tab.nodes[state.node]) {
      const node = tab.nodes[state.node], same = [];
      data.tabs.forEach((other, index) => {
        if (index !== state.tab && other.group === tab.group && other.byName.has(node.n)) same.push(nodeChip(index, other.byName.get(node.n), true));
      });
      parts.push(appendMarked(make('h2'), node.n), rows(node),
        ...chips('Kernels', node.k.map((k) => ({ text: data.codes[k].name, go: () => selectCode(k) }))),
        ...chips('Inputs', node.i.map((i) => nodeChip(state.tab, i, false))),
        ...chips('Used by', node.users.map((u) => nodeChip(state.tab, u, false))),
        ...chips('Becomes, or comes from', node.r.map(([t, n]) => nodeChip(t, n, true))),
        ...chips('Same name in', same), ...node.k.map((k, at) => codeBlock(k, at === 0)));
    } else {
      parts.push(make('h2', {}, tab ? tab.title : data.title));
      if (tab) parts.push(make('p', { class: 'warning' }, `${tab.nodes.length} nodes, ${tab.note}`));
      parts.push(make('p', {}, 'Click a node or a kernel to see what belongs to it. Press ? for the keys.'));
      if (data.warnings.length) parts.push(make('h3', {}, 'About the input'));
      for (const text of data.warnings) parts.push(make('p', { class: 'warning' }, text));
    }
    panel.replaceChildren(...parts);
    panel.scrollTop = 0;
  }

  // ---- moving about ----

  function saveHash() {
    const words = new URLSearchParams(), tab = data.tabs[state.tab];
    words.set('tab', state.tab);
    if (tab && tab.nodes[state.node]) words.set('node', tab.nodes[state.node].n);
    if (state.code >= 0) words.set('kernel', data.codes[state.code].name);
    if (state.query) words.set('q', state.query);
    if (state.table) words.set('view', 'table');
    try { history.replaceState(null, '', '#' + words); } catch (error) { /* some browsers refuse this for files */ }
  }

  function refresh() {
    drawNav();
    drawDetails();
    showMarks();
    saveHash();
  }

  function openTab(index) {
    const changed = index !== state.tab || !byId('boxes').children.length;
    state.tab = index;
    if (changed) {
      state.node = -1;
      drawPicture();
      fit();
      if (state.table) drawTable();
    }
    state.code = -1;
    byId('status').textContent = data.tabs[index] ? `${data.tabs[index].nodes.length} nodes, ${data.tabs[index].note}` : '';
    refresh();
  }

  function selectNode(tab, index) {
    if (tab !== state.tab) openTab(tab);
    state.node = index;
    state.code = -1;
    refresh();
    const node = data.tabs[tab].nodes[index];
    if (!node) return;
    if (!isVisible(node)) centre(node);
    byId('status').textContent = describe(index);
    const row = byId('table').querySelector(`tr[data-index="${index}"]`);
    if (row && state.table) row.scrollIntoView({ block: 'nearest' });
  }

  function selectCode(index) {
    state.code = index;
    state.node = -1;
    const first = data.codes[index].nodes[0];
    if (first && first[0] !== state.tab && !data.codes[index].nodes.some(([t]) => t === state.tab)) {
      openTab(first[0]);
      state.code = index;
    }
    refresh();
  }

  function search(text) {
    state.query = text.trim().toLowerCase();
    state.hits = [];
    state.hit = -1;
    if (state.query) {
      data.tabs.forEach((tab, t) => tab.nodes.forEach((node, n) => {
        if (searchText(node).includes(state.query)) state.hits.push([t, n]);
      }));
      data.codes.forEach((code, c) => { if (searchText(code).includes(state.query)) state.hits.push([-1, c]); });
    }
    showHits();
    if (state.table) drawTable();
    refresh();
  }

  function showHits() {
    const of = state.hits.length, at = state.hit >= 0 ? `${state.hit + 1} of ${of}` : `${of} hits`;
    byId('hits').textContent = state.query ? at : '';
  }

  function nextHit(step) {
    if (!state.hits.length) return;
    // The first step goes to a hit in the tab that is open, if it has one.
    const here = state.hits.findIndex(([t]) => t === state.tab);
    state.hit = state.hit < 0 ? Math.max(here, 0) : (state.hit + step + state.hits.length) % state.hits.length;
    const [tab, index] = state.hits[state.hit];
    if (tab >= 0) selectNode(tab, index); else selectCode(index);
    showHits();
  }

  function setTable(on) {
    state.table = on;
    byId('table').hidden = !on;
    byId('view').textContent = on ? 'Picture' : 'Table';
    if (on) drawTable();
    refresh();
  }

  function toggleTheme() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === 'dark' : matchMedia('(prefers-color-scheme: dark)').matches;
    root.dataset.theme = dark ? 'light' : 'dark';
    byId('theme').textContent = dark ? 'Dark' : 'Light';
  }

  function clear() {
    state.node = state.code = -1;
    byId('search').value = '';
    search('');
  }

  // ---- keys and pointers ----

  const pan = (x, y) => { camera.x += x; camera.y += y; applyCamera(); };
  const zoomMiddle = (factor) => { const box = byId('stage').getBoundingClientRect(); zoom(factor, box.width / 2, box.height / 2); };
  const step = (by) => {
    const tab = data.tabs[state.tab];
    if (tab && tab.nodes.length) selectNode(state.tab, (state.node + by + tab.nodes.length) % tab.nodes.length);
  };
  const turn = (by) => { if (data.tabs.length) openTab((state.tab + by + data.tabs.length) % data.tabs.length); };
  const KEYS = [
    ['/', 'search', () => byId('search').focus()],
    ['n', 'next hit', () => nextHit(1)], ['N', 'previous hit', () => nextHit(-1)],
    ['j', 'next node', () => step(1)], ['k', 'previous node', () => step(-1)],
    [']', 'next graph', () => turn(1)], ['[', 'previous graph', () => turn(-1)],
    ['+', 'larger', () => zoomMiddle(1.25)], ['-', 'smaller', () => zoomMiddle(0.8)], ['0', 'fit', fit],
    ['ArrowLeft', 'pan', () => pan(60, 0)], ['ArrowRight', 'pan', () => pan(-60, 0)],
    ['ArrowUp', 'pan', () => pan(0, 60)], ['ArrowDown', 'pan', () => pan(0, -60)],
    ['t', 'table or picture', () => setTable(!state.table)], ['d', 'dark or light', toggleTheme],
    ['Escape', 'nothing selected, no search', clear], ['?', 'these keys', () => byId('keys').showModal()],
  ];

  function setUpKeys() {
    byId('keys').append(make('h2', {}, 'Keys'), make('dl', {}, ...KEYS.flatMap(([key, what]) =>
      [make('dt', {}, make('kbd', {}, key)), make('dd', {}, what)])), make('p', {}, 'Wheel: zoom. Drag: pan. Escape closes this.'));
    addEventListener('keydown', (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || byId('keys').open) return;
      const typing = event.target === byId('search');
      if (typing && event.key === 'Enter') nextHit(event.shiftKey ? -1 : 1);
      if (typing && event.key !== 'Escape') return;
      const inText = state.table || event.target.tagName === 'PRE';
      if (inText && event.key.startsWith('Arrow')) return; // these scroll
      const row = event.target.closest && event.target.closest('tbody tr');
      if (row && event.key === 'Enter') selectNode(state.tab, Number(row.dataset.index));
      const found = KEYS.find(([key]) => key === event.key);
      if (!found) return;
      event.preventDefault();
      if (typing) byId('search').blur();
      found[2]();
    });
  }

  function setUpPointer() {
    const picture = byId('picture');
    let drag = null;
    const indexAt = (target) => { const node = target.closest && target.closest('.node'); return node ? Number(node.dataset.index) : -1; };
    picture.addEventListener('wheel', (event) => {
      event.preventDefault();
      const box = picture.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - box.left, event.clientY - box.top);
    }, { passive: false });
    picture.addEventListener('pointerdown', (event) => { drag = { x: event.clientX, y: event.clientY, moved: false }; });
    picture.addEventListener('pointermove', (event) => {
      if (!drag) return;
      const x = event.clientX - drag.x, y = event.clientY - drag.y;
      if (!drag.moved && Math.abs(x) + Math.abs(y) < 5) return;
      drag = { x: event.clientX, y: event.clientY, moved: true };
      picture.classList.add('dragging');
      pan(x, y);
    });
    const release = () => { picture.classList.remove('dragging'); setTimeout(() => { drag = null; }, 0); };
    picture.addEventListener('pointerup', release);
    picture.addEventListener('pointerleave', release);
    picture.addEventListener('click', (event) => {
      if (drag && drag.moved) return;
      selectNode(state.tab, indexAt(event.target));
    });
    picture.addEventListener('pointerover', (event) => {
      const index = indexAt(event.target);
      if (index >= 0) { byId('status').textContent = describe(index); showNear(index); }
    });
    picture.addEventListener('pointerout', () => showNear(state.node));
    byId('table').addEventListener('click', (event) => {
      const row = event.target.closest('tbody tr');
      if (row) selectNode(state.tab, Number(row.dataset.index));
    });
  }

  function setUpControls() {
    let waiting = 0;
    byId('search').addEventListener('input', () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => search(byId('search').value), 120);
    });
    byId('next').addEventListener('click', () => nextHit(1));
    byId('previous').addEventListener('click', () => nextHit(-1));
    byId('view').addEventListener('click', () => setTable(!state.table));
    byId('fit').addEventListener('click', fit);
    byId('theme').addEventListener('click', toggleTheme);
    byId('help').addEventListener('click', () => byId('keys').showModal());
    if (matchMedia('(prefers-color-scheme: dark)').matches) byId('theme').textContent = 'Light';
  }

  // "#tab=1&node=mul_2&q=silu&view=table" brings a reader back to where a link was made.
  function start() {
    const words = new URLSearchParams(location.hash.slice(1)), wanted = Number(words.get('tab')) || 0;
    document.title = byId('title').textContent = data.title;
    byId('summary').textContent = data.summary.join('; ');
    setUpKeys();
    setUpPointer();
    setUpControls();
    openTab(Math.min(wanted, Math.max(data.tabs.length - 1, 0)));
    if (words.get('q')) { byId('search').value = words.get('q'); search(words.get('q')); }
    const tab = data.tabs[state.tab];
    if (tab && tab.byName.has(words.get('node'))) selectNode(state.tab, tab.byName.get(words.get('node')));
    const code = data.codes.findIndex((item) => item.name === words.get('kernel'));
    if (code >= 0) selectCode(code);
    if (words.get('view') === 'table') setTable(true);
  }

  start();
})();
