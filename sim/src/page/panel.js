// The panel, the legend and the controls; diagram.js comes before it.

// --- what is under the pointer ---

function under(x, y) {
  let best = null, least = 9;
  for (const h of hits) {
    let d;
    if (h.box) d = x >= h.x0 && x <= h.x1 && y >= h.y0 && y <= h.y1 ? 8.5 : Infinity;
    else {
      const dx = h.x1 - h.x0, dy = h.y1 - h.y0, long = dx * dx + dy * dy;
      const at = long ? Math.min(Math.max(((x - h.x0) * dx + (y - h.y0) * dy) / long, 0), 1) : 0;
      d = Math.hypot(x - h.x0 - at * dx, y - h.y0 - at * dy) + (long ? 3 : 0) - (h.e && MARKED.has(h.e.id) ? 2 : 0);
    }
    if (d < least) { least = d; best = h; }
  }
  return best;
}
function headline(e) {
  const who = e.node ? `n${e.node}` : 'harness';
  switch (e.kind) {
    case 'send': return `n${e.node} → n${e.peer} ${e.name} sent`;
    case 'deliver': return `n${e.peer} → n${e.node} ${e.name} arrives`;
    case 'drop': { const sent = BY_ID.get(e.causes[0]); return sent ? `n${sent.node} → n${sent.peer} ${e.name} is lost` : `${who} message lost`; }
    case 'call': return `call to ${who}`;
    case 'return': return `${who} answers`;
    default: return `${who} ${e.kind}`;
  }
}
function took(e) {
  const sent = e.kind === 'deliver' && BY_ID.get(e.causes[0]);
  return sent ? `, ${((e.t - sent.t) / 1e6).toFixed(1)} ms after it was sent${e.t - sent.t >= LATE_NS ? ' (late)' : ''}` : '';
}
function showTip(h, x, y) {
  const tip = $('tip');
  tip.hidden = !h;
  if (!h) return;
  tip.replaceChildren();
  const line = (text, dim) => { const p = document.createElement('div'); p.textContent = text; if (dim) p.className = 'dim'; tip.append(p); };
  if (h.tip) h.tip.split('\n').forEach((text, i) => line(text, i > 0));
  else {
    const n = NUMBER.get(h.e.id);
    line((n ? `${n}. ` : '') + headline(h.e));
    if (h.e.text) line(h.e.text.length > 300 ? h.e.text.slice(0, 300) + '…' : h.e.text);
    line(`${seconds(h.e.t)} s (${relative(h.e.t)})${took(h.e)}`, true);
  }
  const box = tip.getBoundingClientRect();
  tip.style.left = Math.min(x + 14, W - box.width - 6) + 'px';
  tip.style.top = (y + 18 + box.height > H ? y - box.height - 10 : y + 18) + 'px';
}

// --- the panel ---

function node(tag, text, name) { const n = document.createElement(tag); if (text !== undefined) n.textContent = text; if (name) n.className = name; return n; }

function showFinding() {
  const box = $('finding');
  const rows = [];
  if (FINDING) {
    box.className = 'bad';
    box.append(node('h2', `Violated: ${FINDING.oracle}`), node('p', FINDING.what));
    rows.push(['when', `${seconds(FINDING.at)} s of simulated time, event ${FINDING.event}`]);
    if (FINDING.nodes.length) rows.push(['nodes', FINDING.nodes.map((n) => `n${n}`).join(', ')]);
    if (FINDING.group !== null) rows.push(['group', groupName(FINDING.group) + (FINDING.term !== null ? `, term t${FINDING.term}` : '')]);
    if (FINDING.lsns) rows.push(['LSN', FINDING.lsns[0] === FINDING.lsns[1] ? `l${FINDING.lsns[0]}` : `l${FINDING.lsns[0]} to l${FINDING.lsns[1]}`]);
  } else {
    box.className = 'good';
    box.append(node('h2', 'Nothing found'), node('p', 'No oracle fired. This is the end of the run.'));
    rows.push(['length', `${seconds(D.end, 3)} s of simulated time`]);
  }
  rows.push(['replay', D.replay]);
  const table = node('table');
  for (const [name, value] of rows) {
    const tr = node('tr');
    tr.append(node('td', name)); const td = node('td'); td.append(name === 'replay' ? node('code', value) : value); tr.append(td);
    table.append(tr);
  }
  box.append(table);
}

function showChain() {
  const box = $('chain');
  if (!D.chain.length) { box.append(node('h3', 'Faults of the plan')); list(box, [], D.spans.map((s, i) => [s, i]).filter(([s]) => s.kind === 'fault').map(([, i]) => i)); return; }
  const title = node('h3', 'Why: from cause to violation ');
  title.append(node('small', `${D.chain.length} events; keys j and k step through them`));
  box.append(title);
  list(box, D.chain, FINDING.faults);
}
function list(box, links, faults) {
  const ol = node('ol');
  const lines = links.map((link, i) => ({ t: link.at, link, n: i + 1 }));
  for (const i of faults) lines.push({ t: D.spans[i].from, fault: D.spans[i] });
  lines.sort((a, b) => a.t - b.t || (a.n || 0) - (b.n || 0));
  for (const { t, link, fault, n } of lines) {
    const li = node('li');
    if (fault) {
      li.className = 'fault';
      li.append(node('span', relative(t), 't'), node('span', `fault: ${fault.text}`));
      li.onclick = () => look(t - 50e6, Math.max(t + 250e6, Math.min(fault.to === null ? D.end : fault.to, t + 2e9) + 50e6));
    } else {
      li.dataset.id = link.id;
      if (link.tag === 'violation') li.className = 'violation';
      li.append(node('span', String(n), 'n'), node('span', relative(t), 't'), node('span', link.line));
      li.onclick = () => select(link.id, true);
    }
    ol.append(li);
  }
  box.append(ol);
}

function select(id, jump) {
  state.selected = id;
  const e = BY_ID.get(id);
  showDetails(e);
  for (const li of document.querySelectorAll('#chain li')) {
    const now = li.dataset.id === String(id);
    li.classList.toggle('now', now);
    if (now) li.scrollIntoView({ block: 'nearest' });
  }
  if (e && jump) {
    if (e.node && !state.nodes.has(e.node)) { state.nodes.add(e.node); choices(); }
    bring(e.t);
  } else draw();
}

function showDetails(e) {
  const box = $('details');
  box.replaceChildren(node('h3', e ? headline(e) : 'Details'));
  const body = node('div', undefined, 'body');
  box.append(body);
  if (!e) {
    body.append(node('p', 'Click an event, a message or a line of the chain. The wheel zooms, dragging pans; ? explains the signs.', 'soft'));
    return;
  }
  body.append(node('p', `${seconds(e.t)} s (${relative(e.t)}), event ${e.id}${took(e)}` + (e.groups.length ? `; ${e.groups.map(groupName).join(', ')}` : ''), 'soft'));
  if (e.text) body.append(node('p', e.text, 'text'));
  const before = D.nodes.includes(e.node) ? neighbour(e, -1) : null, after = D.nodes.includes(e.node) ? neighbour(e, 1) : null;
  links(body, 'brought about by', e.causes.map((c) => BY_ID.get(c)));
  links(body, 'led to', e.effects.map((c) => BY_ID.get(c)));
  links(body, `before it on n${e.node}`, before ? [before] : []);
  links(body, `next on n${e.node}`, after ? [after] : []);
}
function neighbour(e, by) {
  for (let i = EVENTS.indexOf(e) + by; i >= 0 && i < EVENTS.length; i += by) {
    if (EVENTS[i].node === e.node && visible(EVENTS[i])) return EVENTS[i];
  }
  return null;
}
function links(body, title, events) {
  if (!events.length) return;
  body.append(node('div', title, 'soft'));
  const ul = node('ul');
  for (const e of events.slice(0, 12)) {
    const li = node('li'), a = node('a', `${headline(e)}`);
    a.onclick = () => select(e.id, true);
    li.append(a, node('span', ` ${relative(e.t)} ${e.text.slice(0, 110)}`, 'soft'));
    ul.append(li);
  }
  if (events.length > 12) ul.append(node('li', `and ${events.length - 12} more`, 'soft'));
  body.append(ul);
}

// --- the legend ---

function showLegend() {
  const box = $('legend');
  const sign = (paint) => {
    const c = document.createElement('canvas'); c.width = 148; c.height = 40; c.style.width = '74px'; c.style.height = '20px';
    paint(c.getContext('2d')); return c;
  };
  const on = (f) => sign((other) => { // draws with the diagram's own functions
    const kept = ctx;
    other.scale(2, 2); ctx = other; f(); ctx = kept;
  });
  const line = (color, dash, width) => on(() => { ctx.strokeStyle = color; ctx.lineWidth = width || 1; ctx.setLineDash(dash); ctx.beginPath(); ctx.moveTo(6, 10); ctx.lineTo(60, 10); ctx.stroke(); ctx.setLineDash([]); if (color !== '#d8515c') head(6, 10, 64, 10, color, 7); else cross(60, 10, 4, color); });
  const one = (kind, color) => on(() => shape(kind, 36, kind === 'flag' ? 15 : 10, color));
  const band = (fill, ink, text) => on(() => { ctx.fillStyle = fill; ctx.fillRect(4, 3, 66, 14); ctx.fillStyle = ink; font(11, true); ctx.textBaseline = 'middle'; ctx.fillText(text, 8, 10.5); });
  const parts = [
    ['Reading it', [
      ['→', 'Time runs to the right; each node has a lane. The red numbers are the lines of the chain at the right: what led to the violation.'],
      [band('hsl(160 55% 38%)', '#fff', 't5 LEADS'), 'leads the selected group in this term; a term keeps its colour on all nodes'],
      [band('hsl(160 55% 90%)', 'hsl(160 60% 24%)', 't5 follows'), 'follows; a stronger tint: asks for votes'],
      [on(() => hatch(4, 2, 66, 16, '#6b7480', '#e9ebee')), 'no process runs (crash to restart)'],
      [on(() => hatch(4, 2, 66, 16, '#c08a00', '#fff4d0')), 'the process is held still'],
      [on(() => { ctx.fillStyle = '#fbe3c4'; ctx.fillRect(4, 3, 66, 14); ctx.fillStyle = '#c97a1d'; ctx.fillRect(4, 3, 2, 14); }), 'a fault of the plan, for as long as it lasts'],
      [on(() => { ctx.strokeStyle = '#d8515c'; ctx.lineWidth = 2; ctx.beginPath(); ctx.moveTo(4, 10); ctx.lineTo(70, 10); ctx.stroke(); }), 'at the bottom of a lane: what this node sends to another one is lost (point at it)'],
      [on(() => MARKS.forEach(([, color], i) => { ctx.fillStyle = color; ctx.fillRect(4, 4 + i * 5, 66, 1.6); })), 'watermarks: durable (fsynced), committed, applied; all lanes share one scale. At the left: their values under the pointer'],
    ]],
    ['Messages', [
      [line(COLORS.log, []), 'Append and its answers'], [line(COLORS.votes, []), 'votes'], [line(COLORS.reads, []), 'read indexes'],
      [line(COLORS.forwards, []), 'requests forwarded to the leader'], [line(COLORS.heartbeats, []), 'heartbeats and the like'],
      [line('#d8515c', [4, 3]), 'lost: at once (a short stub), or on its way'], [line(COLORS.log, [8, 3]), 'a second copy'],
      [line(COLORS.log, [1, 3], 2), 'late: 100 ms and more under way'], [line(RED, [], 2), 'part of the chain'],
    ]],
    ['Events', [
      [one('dot', EVENT_COLORS.step), 'a step of the driver: inputs taken, effects carried out'],
      [one('down', EVENT_COLORS.call), 'a client calls'], [one('up', EVENT_COLORS.return), 'the client has its answer'],
      [one('box', EVENT_COLORS.write), 'a write to the oplog'], [one('disk', EVENT_COLORS.sync), 'an fsync'],
      [one('diamond', EVENT_COLORS.applied), 'entries are applied'], [one('big', EVENT_COLORS.process), 'a process starts, recovers, or says something'],
      [one('cross', EVENT_COLORS.fault), 'a process ends: crash or power cut; or damage to its disk'],
      [one('flag', EVENT_COLORS.leader), 'the node sees another leader'],
      [one('lost', RED), 'a datagram of real QUIC is lost (the message comes with a later one)'],
    ]],
  ];
  for (const [title, rows] of parts) {
    box.append(node('h3', title));
    const dl = node('dl');
    for (const [what, text] of rows) { const dt = node('dt'); dt.append(what); dl.append(dt, node('dd', text)); }
    box.append(dl);
  }
  box.append(node('h3', 'Keys'));
  const dl = node('dl');
  for (const [keys, text] of [['+ −', 'zoom (the wheel, too)'], ['← →', 'pan (dragging, too)'], ['j k', 'next and previous event of the chain'], ['v c 0', 'the last moments; the whole chain; the whole run'], ['g', 'the next group'], ['/', 'search; Enter goes to the next match'], ['Esc', 'nothing selected']]) {
    const dt = node('dt'); keys.split(' ').forEach((k) => { dt.append(node('kbd', k), ' '); }); dl.append(dt, node('dd', text));
  }
  box.append(dl);
}
// --- controls ---

function choices() {
  const pill = (box, text, title, on, set) => {
    const label = node('label', text, on ? 'on' : ''), input = document.createElement('input');
    input.type = 'checkbox'; input.checked = on; label.title = title; label.prepend(input);
    input.onchange = () => { label.classList.toggle('on', input.checked); set(input.checked); draw(); };
    box.append(label);
  };
  $('nodes').replaceChildren(); $('kinds').replaceChildren();
  for (const n of D.nodes) pill($('nodes'), `n${n}`, `show n${n}`, state.nodes.has(n), (on) => (on ? state.nodes.add(n) : state.nodes.delete(n)));
  for (const [kind, , title] of KINDS) {
    if (kind === 'dim' && !D.chain.length) continue;
    if (kind === 'datagrams' && !EVENTS.some((e) => e.class === kind)) continue;
    pill($('kinds'), kind === 'dim' ? 'dim the rest' : kind, title, state.kinds.get(kind), (on) => state.kinds.set(kind, on));
  }
}
function setGroup(id) { state.group = id; $('group').value = String(id); draw(); }
function step(by) { // along the chain
  if (!D.chain.length) return;
  const at = D.chain.findIndex((link) => link.id === state.selected);
  const next = at < 0 ? (by > 0 ? 0 : D.chain.length - 1) : Math.min(Math.max(at + by, 0), D.chain.length - 1);
  select(D.chain[next].id, true);
}
function nextMatch() {
  if (!found.length) return;
  const at = found.findIndex((e) => e.id > (state.selected === null ? -1 : state.selected));
  select(found[Math.max(at, 0)].id, true);
}

function listen() {
  let drag = null, moved = false;
  canvas.addEventListener('mousedown', (m) => { drag = { x: m.offsetX, from: state.from, to: state.to, mini: m.offsetY > H - MINI }; moved = false; if (drag.mini) miniGo(m.offsetX); });
  window.addEventListener('mouseup', () => { drag = null; canvas.classList.remove('drag'); });
  canvas.addEventListener('mousemove', (m) => {
    state.cursor = m.offsetX;
    if (drag && drag.mini) return miniGo(m.offsetX);
    if (drag && Math.abs(m.offsetX - drag.x) > 3) {
      moved = true; canvas.classList.add('drag'); showTip(null);
      const by = (drag.x - m.offsetX) / (W - GUTTER - 10) * (drag.to - drag.from);
      return look(drag.from + by, drag.to + by);
    }
    const h = under(m.offsetX, m.offsetY);
    showTip(h, m.offsetX, m.offsetY);
    canvas.style.cursor = h && h.e ? 'pointer' : '';
    draw();
  });
  canvas.addEventListener('mouseleave', () => { state.cursor = null; showTip(null); draw(); });
  canvas.addEventListener('click', (m) => {
    if (moved || m.offsetY > H - MINI) return;
    const h = under(m.offsetX, m.offsetY);
    if (h && h.e) select(h.e.id, false); else if (!h) select(null, false);
  });
  canvas.addEventListener('wheel', (w) => {
    w.preventDefault();
    if (w.shiftKey || Math.abs(w.deltaX) > Math.abs(w.deltaY)) pan((w.deltaX || w.deltaY) / 1000);
    else zoom(Math.exp(Math.min(Math.max(w.deltaY, -240), 240) / 400), T(Math.max(w.offsetX, GUTTER)));
  }, { passive: false });
  $('in').onclick = () => zoom(0.5, middle()); $('out').onclick = () => zoom(2, middle());
  $('goal').onclick = lookAtEnd; $('explain').onclick = lookAtChain; $('whole').onclick = lookAtAll;
  if (!FINDING) { $('goal').textContent = 'end'; $('explain').hidden = true; }
  $('keys').onclick = () => { $('legend').hidden = !$('legend').hidden; };
  $('group').onchange = () => setGroup(Number($('group').value));
  $('search').oninput = () => { state.query = $('search').value.trim().toLowerCase(); search(); draw(); };
  $('search').onkeydown = (k) => { if (k.key === 'Enter') nextMatch(); if (k.key === 'Escape') canvas.focus(); k.stopPropagation(); };
  window.addEventListener('keydown', (k) => {
    if (k.ctrlKey || k.metaKey || k.altKey || k.target.tagName === 'SELECT') return;
    const keys = {
      '+': () => zoom(0.6, middle()), '=': () => zoom(0.6, middle()), '-': () => zoom(1.6, middle()),
      ArrowLeft: () => pan(-0.2), ArrowRight: () => pan(0.2), j: () => step(1), k: () => step(-1), n: nextMatch,
      v: lookAtEnd, c: lookAtChain, 0: lookAtAll, '?': () => $('keys').onclick(),
      g: () => { const at = D.groups.findIndex((g) => g.id === state.group); setGroup(D.groups[(at + 1) % D.groups.length].id); },
      '/': () => $('search').focus(), Escape: () => { $('legend').hidden = true; select(null, false); },
    };
    if (keys[k.key]) { k.preventDefault(); keys[k.key](); }
  });
  window.addEventListener('resize', () => { layout(); draw(); });
}
function miniGo(x) {
  const t = (x - GUTTER) / (W - GUTTER - 10) * miniEnd(), half = (state.to - state.from) / 2;
  look(t - half, t + half);
}

// The address remembers the view, so that it can be handed on.
function remember() {
  const hash = new URLSearchParams({ from: seconds(state.from), to: seconds(state.to), g: state.group });
  if (state.query) hash.set('q', state.query);
  if (state.selected !== null) hash.set('sel', state.selected);
  clearTimeout(remember.timer);
  remember.timer = setTimeout(() => { try { history.replaceState(null, '', '#' + hash); } catch (e) { /* some viewers forbid it */ } }, 300);
}
function recall() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (hash.has(name) ? Number(hash.get(name)) : NaN);
  if (D.groups.some((g) => g.id === number('g'))) state.group = number('g');
  if (hash.get('q')) { state.query = $('search').value = hash.get('q'); search(); }
  if (number('from') < number('to')) look(number('from') * 1e9, number('to') * 1e9); else lookAtEnd();
  if (BY_ID.has(number('sel'))) select(number('sel'), !hash.has('from'));
  if (hash.has('legend')) $('legend').hidden = false;
}

$('title').textContent = D.title;
for (const g of D.groups) { const o = node('option', groupName(g.id)); o.value = g.id; $('group').append(o); }
layout(); showFinding(); showChain(); showDetails(null); choices(); listen(); recall();
$('group').value = String(state.group);
showLegend();
