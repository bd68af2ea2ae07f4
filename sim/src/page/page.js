'use strict';
// The data is what html.rs wrote; times are simulated nanoseconds.
const D = JSON.parse(document.getElementById('data').textContent);
const $ = (id) => document.getElementById(id);

// --- the model ---

const EVENTS = D.events.map(([id, t, kind, node, peer, name, text, groups, causes]) =>
  ({ id, t, kind, node, peer, name, text, groups, causes, effects: [] }));
const BY_ID = new Map(EVENTS.map((e) => [e.id, e]));
for (const e of EVENTS) {
  for (const c of e.causes) BY_ID.get(c).effects.push(e.id);
  if (e.kind === 'deliver' && !e.text && e.causes.length) e.text = BY_ID.get(e.causes[0]).text;
}
const MARKED = new Set(D.marked);
const NUMBER = new Map(D.chain.map((link, i) => [link.id, i + 1]));
const FINDING = D.finding;
const LATE_NS = 100e6;

// What a filter switches: its name, whether it is on at first, and what it is.
const MESSAGES = {
  log: /^(Append|Fetch)/, votes: /^(PreVote|Vote|TimeoutNow)/, reads: /^ReadIndex/,
  forwards: /^(Forward|Status)/,
};
const KINDS = [
  ['log', true, 'Append and its answers'], ['votes', true, 'elections'], ['reads', true, 'read indexes'],
  ['forwards', true, 'requests between nodes'], ['heartbeats', false, 'heartbeats and the like'],
  ['steps', true, 'steps of the drivers'], ['disk', true, 'writes and syncs of the oplog'],
  ['applied', true, 'entries applied'], ['calls', true, 'clients: calls and answers'],
  ['timers', false, 'deadlines'], ['datagrams', true, 'lost datagrams of real QUIC'], ['other groups', false, 'events of other groups than the one selected'],
  ['dim', true, 'dim what is not in the chain'],
];
function kindOf(e) {
  switch (e.kind) {
    case 'send': case 'deliver': case 'drop':
      for (const kind in MESSAGES) if (MESSAGES[kind].test(e.name)) return kind;
      return 'heartbeats';
    case 'step': return e.groups.length ? 'steps' : 'heartbeats';
    case 'write': case 'sync': case 'name': return 'disk';
    case 'applied': return 'applied';
    case 'call': case 'return': return 'calls';
    case 'timer': return 'timers';
    case 'dgram-drop': return 'datagrams';
    default: return 'always';
  }
}
for (const e of EVENTS) e.class = kindOf(e);

// Messages as arrows, from their arrival, their loss, or (under way at the end) their sending.
const ARROWS = [];
for (const e of EVENTS) {
  if (e.kind === 'deliver' || e.kind === 'drop') {
    const sent = BY_ID.get(e.causes[0]);
    if (!sent) continue;
    const lost = e.kind === 'drop';
    ARROWS.push({
      e, sent, from: sent.node, to: sent.peer, t0: sent.t, t1: e.t, lost, atOnce: lost && e.node === sent.node,
      late: !lost && e.t - sent.t >= LATE_NS, copy: e.text.endsWith('(repeated)'),
      marked: MARKED.has(e.id) && MARKED.has(sent.id),
    });
  } else if (e.kind === 'send' && !e.effects.length) {
    ARROWS.push({ e, sent: e, from: e.node, to: e.peer, t0: e.t, t1: D.end, open: true, marked: false });
  }
}

// How replicas stood: points by node and group.
const SERIES = new Map();
for (const s of D.series) {
  const points = [];
  for (let i = 0; i < s.points.length; i += 7) {
    const [t, role, term, appended, durable, committed, applied] = s.points.slice(i, i + 7);
    points.push({ t, role, term, appended, durable, committed, applied });
  }
  SERIES.set(`${s.node}/${s.group}`, points);
}
const pointsOf = (node) => SERIES.get(`${node}/${state.group}`) || [];
function upper(list, t, at) { // how many are at or before t
  let low = 0, high = list.length;
  while (low < high) { const mid = (low + high) >> 1; if (at(list[mid]) <= t) low = mid + 1; else high = mid; }
  return low;
}
const pointAt = (node, t) => { const p = pointsOf(node); return p[upper(p, t, (x) => x.t) - 1]; };
const databases = D.groups.filter((g) => g.id !== 0);
const groupName = (id) => { const g = D.groups.find((x) => x.id === id); return g ? `g${id} ${g.name}` : `g${id}`; };

// --- the state of the view ---

const state = {
  from: 0, to: 1, group: 0, kinds: new Map(KINDS.map(([kind, on]) => [kind, on])), nodes: new Set(D.nodes),
  query: '', selected: null, hover: null, cursor: null,
};
state.group = FINDING && FINDING.group !== null ? FINDING.group : databases.length ? databases[0].id : 0;
const RED = '#c3202f';
const COLORS = {
  log: '#2f6db5', votes: '#8a3fb0', reads: '#22806b', forwards: '#b8691a', heartbeats: '#9aa5b3',
};
const MARKS = [['durable', '#1857b6'], ['committed', '#1c8a4a'], ['applied', '#d07412']];

function visible(e) {
  if (MARKED.has(e.id)) return true;
  if (e.class !== 'always' && !state.kinds.get(e.class)) return false;
  return !e.groups.length || state.kinds.get('other groups') || e.groups.includes(state.group);
}
function matches(e) {
  const q = state.query;
  return e.kind.includes(q) || e.name.toLowerCase().includes(q) || e.text.toLowerCase().includes(q) || `n${e.node}` === q;
}
let found = [];
function search() {
  found = state.query ? EVENTS.filter((e) => e.kind !== 'send' && matches(e)) : [];
  $('matches').textContent = state.query ? `${found.length} found` : '';
  foundIds = new Set(found.map((e) => e.id));
}
let foundIds = new Set();

// --- time ---

const seconds = (ns, digits) => (ns / 1e9).toFixed(digits === undefined ? 6 : digits);
function relative(t) {
  const d = t - D.end, s = Math.abs(d) / 1e9;
  const digits = s < 0.1 ? 6 : s < 10 ? 4 : 2;
  return (d < 0 ? '−' : d > 0 ? '+' : '') + s.toFixed(digits) + ' s';
}
function look(from, to) {
  const least = 20e3, most = Math.max(D.last, D.end) * 1.04 + 1e6;
  let span = Math.min(Math.max(to - from, least), most);
  const middle = (from + to) / 2;
  from = Math.min(Math.max(middle - span / 2, -most * 0.02), most - span);
  state.from = from; state.to = from + span;
  draw();
}
const zoom = (by, at) => look(at - (at - state.from) * by, at + (state.to - at) * by);
const middle = () => (state.from + state.to) / 2;
const pan = (by) => look(state.from + (state.to - state.from) * by, state.to + (state.to - state.from) * by);
function lookAtEnd() {
  const span = 1.5e9;
  look(D.end - span, D.end + span * 0.06);
}
function lookAtChain() {
  if (!D.chain.length) return lookAtEnd();
  const from = D.chain[0].at, span = Math.max(D.end - from, 1e6);
  look(from - span * 0.03, D.end + span * 0.05);
}
const lookAtAll = () => look(0, Math.max(D.last, D.end) * 1.02);
function bring(t) { // into view, close enough to tell its neighbours apart
  const span = Math.min(state.to - state.from, 60e6);
  const inside = t > state.from + span * 0.1 && t < state.to - span * 0.1;
  if (!inside || state.to - state.from > 60e6) look(t - span / 2, t + span / 2);
  else draw();
}

// --- the diagram ---

const canvas = $('diagram');
let ctx = canvas.getContext('2d');
const GUTTER = 124, AXIS = 24, MINI = 58;
let W = 0, H = 0, lanes = new Map(), hits = [], badges = [];
const X = (t) => GUTTER + (t - state.from) / (state.to - state.from) * (W - GUTTER - 10);
const T = (x) => state.from + (x - GUTTER) / (W - GUTTER - 10) * (state.to - state.from);

function layout() {
  const ratio = window.devicePixelRatio || 1, box = canvas.getBoundingClientRect();
  W = box.width; H = box.height;
  canvas.width = W * ratio; canvas.height = H * ratio;
  ctx.setTransform(ratio, 0, 0, ratio, 0, 0);
}
let pending = false;
function draw() {
  if (!pending) { pending = true; requestAnimationFrame(() => { pending = false; paint(); }); }
}
function font(size, bold) { ctx.font = `${bold ? '600 ' : ''}${size}px system-ui, "Liberation Sans", sans-serif`; }
function clip(text, width) { // as much of a text as fits
  if (ctx.measureText(text).width <= width) return text;
  let n = Math.min(text.length, Math.floor(width / 4));
  while (n > 1 && ctx.measureText(text.slice(0, n) + '…').width > width) n--;
  return n > 1 ? text.slice(0, n) + '…' : '';
}

function paint() {
  ctx.globalAlpha = 1;
  ctx.clearRect(0, 0, W, H);
  hits = []; badges = []; labels = [];
  const faults = packFaults();
  const top = AXIS + faults.rows * 16 + 4;
  const shown = D.nodes.filter((n) => state.nodes.has(n));
  const height = (H - top - MINI) / Math.max(shown.length, 1);
  lanes = new Map(shown.map((node, i) => {
    const y = top + i * height, band = 16, marks = Math.min(Math.max(height * 0.36, 22), 90);
    return [node, { y, height, rail: y + band + (height - band - marks) * 0.52, marks, band }];
  }));
  ctx.save();
  ctx.beginPath(); ctx.rect(GUTTER, 0, W - GUTTER, H - MINI); ctx.clip();
  paintOutsideWindow(top);
  paintFaults(faults);
  const scale = markScale(shown);
  for (const node of shown) paintLane(node, scale);
  paintArrows(false); paintEvents(false);
  paintArrows(true); paintEvents(true);
  paintBadges();
  paintEnd(top);
  ctx.restore();
  paintGutter(shown);
  paintAxis();
  paintMini();
  remember();
}

function paintOutsideWindow(top) {
  const x = X(D.window);
  if (x <= GUTTER) return;
  ctx.fillStyle = '#f7f8fa';
  ctx.fillRect(GUTTER, top, Math.min(x, W) - GUTTER, H);
  font(11); ctx.fillStyle = '#8893a1'; ctx.textAlign = 'right';
  const text = 'before this only faults, processes, leaders and the chain are kept (replay --window)';
  if (x < W + 200 && x - GUTTER > 460) ctx.fillText(text, Math.min(x, W) - 6, H - MINI - 5);
  ctx.textAlign = 'left';
}

function packFaults() {
  const spans = D.spans.filter((s) => s.kind === 'fault' && s.from < state.to && (s.to === null ? D.last : s.to) >= state.from);
  const ends = [], placed = [];
  font(11);
  for (const s of spans) {
    const x0 = Math.max(X(s.from), GUTTER), x1 = X(s.to === null ? D.last : s.to);
    const width = Math.max(x1 - x0, Math.min(ctx.measureText(s.text).width + 8, 220), 6);
    let row = ends.findIndex((end) => end <= x0);
    if (row < 0) { if (ends.length === 5) continue; row = ends.push(0) - 1; }
    ends[row] = x0 + width + 3;
    placed.push({ s, x0, x1: Math.max(x1, x0 + 3), row, width });
  }
  return { rows: Math.max(ends.length, 1), placed };
}
function paintFaults({ placed }) {
  font(11); ctx.textBaseline = 'middle';
  for (const { s, x0, x1, row, width } of placed) {
    const y = AXIS + row * 16 + 2;
    ctx.fillStyle = '#fbe3c4'; ctx.fillRect(x0, y, x1 - x0, 14);
    ctx.fillStyle = '#c97a1d'; ctx.fillRect(x0, y, 2, 14);
    ctx.fillStyle = '#6b3d06';
    ctx.fillText(clip(s.text, width - 6), x0 + 5, y + 7.5);
    hits.push({ x0, y0: y, x1: Math.max(x1, x0 + width), y1: y + 14, box: true, tip: `${s.text}\n${seconds(s.from, 3)} s to ${s.to === null ? 'the end' : seconds(s.to, 3) + ' s'}` });
  }
}

function markScale(nodes) {
  let low = Infinity, high = 0;
  for (const node of nodes) {
    const points = pointsOf(node), first = upper(points, state.from, (p) => p.t) - 1;
    for (let i = Math.max(first, 0); i < points.length && points[i].t <= state.to; i++) {
      const p = points[i];
      if (!p.role) continue;
      low = Math.min(low, p.durable, p.applied); high = Math.max(high, p.durable, p.committed);
    }
  }
  return low < Infinity ? { low, high: Math.max(high, low + 1) } : null;
}

function paintLane(node, scale) {
  const lane = lanes.get(node), { y, height, rail, marks, band } = lane;
  ctx.fillStyle = '#eef1f4'; ctx.fillRect(GUTTER, y + height - 1, W, 1);
  paintSpans(node, lane);
  // Terms and leaders.
  const points = pointsOf(node);
  let i = Math.max(upper(points, state.from, (p) => p.t) - 1, 0);
  font(11, true); ctx.textBaseline = 'middle';
  while (i < points.length && points[i].t < state.to) {
    let j = i + 1;
    while (j < points.length && points[j].role === points[i].role && points[j].term === points[i].term) j++;
    const p = points[i], x0 = Math.max(X(p.t), GUTTER), x1 = Math.min(j < points.length ? X(points[j].t) : X(D.end), W);
    if (p.role && x1 > x0) {
      const hue = (p.term * 67 + 200) % 360, leads = p.role === 4, asks = p.role === 2 || p.role === 3;
      ctx.fillStyle = leads ? `hsl(${hue} 55% 38%)` : asks ? `hsl(${hue} 75% 70%)` : `hsl(${hue} 55% 90%)`;
      ctx.fillRect(x0, y + 2, Math.max(x1 - x0, 1), band - 2);
      ctx.fillStyle = leads ? '#fff' : `hsl(${hue} 60% 24%)`;
      const what = ['', `follows`, 'asks', 'campaigns', 'LEADS'][p.role];
      const text = `t${p.term} ${what}`;
      if (x1 - x0 > 24) ctx.fillText(clip(x1 - x0 > 90 ? text : `t${p.term}`, x1 - x0 - 6), x0 + 4, y + 2 + band / 2 - 1);
    }
    i = j;
  }
  // The rail.
  ctx.strokeStyle = '#c3cad3'; ctx.lineWidth = 1;
  ctx.beginPath(); ctx.moveTo(GUTTER, rail); ctx.lineTo(W, rail); ctx.stroke();
  if (scale) paintMarks(points, scale, y + height - marks + 2, marks - 20);
}

function paintMarks(points, { low, high }, top, height) {
  const Y = (lsn) => top + height - (Math.min(Math.max(lsn, low), high) - low) / (high - low) * height;
  const first = Math.max(upper(points, state.from, (p) => p.t) - 1, 0);
  MARKS.forEach(([mark, color], n) => {
    ctx.strokeStyle = color; ctx.lineWidth = 1.4; ctx.beginPath();
    let open = false;
    for (let i = first; i < points.length && points[i].t <= state.to; i++) {
      const p = points[i], x = Math.max(X(p.t), GUTTER), x1 = i + 1 < points.length ? X(points[i + 1].t) : X(D.end);
      if (!p.role) { open = false; continue; }
      const y = Y(p[mark]) + (n - 1) * 1.5;
      if (open) ctx.lineTo(x, y); else ctx.moveTo(x, y);
      ctx.lineTo(Math.min(x1, W), y); open = true;
    }
    ctx.stroke();
  });
}

function paintSpans(node, { y, height, rail }) {
  let cuts = 0;
  for (const s of D.spans) {
    if (s.kind === 'fault' || s.nodes[0] !== node || s.from > state.to) continue;
    const x0 = Math.max(X(s.from), GUTTER), x1 = Math.min(X(s.to === null ? D.end : s.to), W);
    if (x1 < GUTTER) continue;
    if (s.kind === 'cut') {
      const row = y + height - 5 - (cuts++ % 5) * 3;
      ctx.strokeStyle = '#d8515c'; ctx.lineWidth = 2;
      ctx.beginPath(); ctx.moveTo(x0, row); ctx.lineTo(x1, row); ctx.stroke();
      hits.push({ x0, y0: row - 2, x1, y1: row + 2, box: true, tip: `messages from n${node} to n${s.nodes[1]} are lost\n${seconds(s.from, 3)} s to ${s.to === null ? 'the end' : seconds(s.to, 3) + ' s'}` });
      continue;
    }
    const down = s.kind === 'down';
    hatch(x0, y + 18, Math.max(x1 - x0, 2), height - 20, down ? '#6b7480' : '#c08a00', down ? '#e9ebeecc' : '#fff4d0aa');
    if (x1 - x0 > 34) {
      font(12, true); ctx.fillStyle = down ? '#4a525c' : '#7a5800'; ctx.textBaseline = 'middle';
      ctx.fillText(s.kind, x0 + 5, y + 28);
    }
  }
}
function hatch(x, y, w, h, line, fill) {
  ctx.save(); ctx.beginPath(); ctx.rect(x, y, w, h); ctx.clip();
  ctx.fillStyle = fill; ctx.fillRect(x, y, w, h);
  ctx.strokeStyle = line; ctx.globalAlpha = 0.28; ctx.lineWidth = 1; ctx.beginPath();
  for (let at = Math.floor((x - h) / 9) * 9; at < x + w; at += 9) { ctx.moveTo(at, y + h); ctx.lineTo(at + h, y); }
  ctx.stroke(); ctx.restore();
}

const dimmed = (marked) => (!marked && D.chain.length && state.kinds.get('dim') ? 0.3 : 0.85);

function paintArrows(marked) {
  let drawn = 0;
  for (const a of ARROWS) if (a.marked === marked && a.t1 >= state.from && a.t0 <= state.to && visible(a.e)) drawn++;
  const plain = drawn > 2500;
  for (const a of ARROWS) {
    if (a.marked !== marked || a.t1 < state.from || a.t0 > state.to || !visible(a.e)) continue;
    const from = lanes.get(a.from), to = lanes.get(a.to);
    if (!from || !to) continue;
    let x0 = X(a.t0), y0 = from.rail, x1 = X(a.t1), y1 = to.rail;
    const chosen = state.selected === a.e.id || state.selected === a.sent.id, hit = foundIds.has(a.e.id);
    if (a.atOnce) { x1 = x0 + 12; y1 = y0 + Math.sign(y1 - y0) * Math.min(26, Math.abs(y1 - y0) * 0.4); }
    if (a.open) { const part = 0.25; x1 = x0 + Math.max((x1 - x0) * part, 6); y1 = y0 + (y1 - y0) * part; }
    if (a.lost && !a.atOnce) { x1 = x0 + (x1 - x0) * 0.93; y1 = y0 + (y1 - y0) * 0.93; }
    ctx.globalAlpha = marked || chosen || hit ? 1 : dimmed(false);
    ctx.strokeStyle = chosen ? '#000' : a.lost ? '#d8515c' : marked ? RED : COLORS[a.e.class] || '#667';
    ctx.lineWidth = marked || chosen ? 2 : 1;
    ctx.setLineDash(a.lost ? [4, 3] : a.copy ? [8, 3] : a.late ? [1, 3] : a.open ? [2, 3] : []);
    if (a.late && !marked) ctx.lineWidth = 2;
    ctx.beginPath(); ctx.moveTo(x0, y0); ctx.lineTo(x1, y1); ctx.stroke();
    ctx.setLineDash([]);
    if (a.lost) cross(x1, y1, 4, ctx.strokeStyle);
    else if (!a.open && (!plain || marked)) head(x0, y0, x1, y1, ctx.strokeStyle, marked ? 8 : 6);
    if (hit) ring(x1, y1, 6, '#e0b000');
    hits.push({ x0, y0, x1, y1, e: a.e });
    const long = Math.hypot(x1 - x0, y1 - y0);
    const room = (W - GUTTER) / Math.max(drawn, 1);
    if (!plain && x1 - x0 > 14 && (marked || room > 60) && long > 60) label(a, x0, y0, x1, y1, marked);
    if (NUMBER.has(a.e.id)) badges.push({ x: x1, y: y1, dy: y1 > y0 ? -11 : 11, n: NUMBER.get(a.e.id), id: a.e.id });
  }
  ctx.globalAlpha = 1;
}
let labels = [];
function label(a, x0, y0, x1, y1, marked) {
  font(11, marked);
  const text = a.e.name, w = ctx.measureText(text).width;
  const apart = (o, x, y) => Math.abs(o.x - x) > (w + o.w) / 2 + 4 || Math.abs(o.y - y) > 14;
  let x, y, free = false;
  for (const at of [0.42, 0.58, 0.3, 0.7]) {
    x = x0 + (x1 - x0) * at; y = y0 + (y1 - y0) * at;
    free = labels.every((o) => apart(o, x, y));
    if (free) break;
  }
  if (!free) return;
  labels.push({ x, y, w });
  ctx.globalAlpha = 1; ctx.fillStyle = '#ffffffd8'; ctx.fillRect(x - w / 2 - 2, y - 7, w + 4, 14);
  ctx.fillStyle = marked ? RED : COLORS[a.e.class] || '#445'; ctx.textAlign = 'center'; ctx.textBaseline = 'middle';
  ctx.fillText(text, x, y); ctx.textAlign = 'left';
}
function head(x0, y0, x1, y1, color, size) {
  const angle = Math.atan2(y1 - y0, x1 - x0);
  ctx.fillStyle = color; ctx.beginPath(); ctx.moveTo(x1, y1);
  for (const turn of [0.4, -0.4]) ctx.lineTo(x1 - size * Math.cos(angle + turn), y1 - size * Math.sin(angle + turn));
  ctx.fill();
}
function cross(x, y, r, color) {
  ctx.strokeStyle = color; ctx.lineWidth = 2; ctx.beginPath();
  ctx.moveTo(x - r, y - r); ctx.lineTo(x + r, y + r); ctx.moveTo(x + r, y - r); ctx.lineTo(x - r, y + r); ctx.stroke();
}
function ring(x, y, r, color) {
  ctx.strokeStyle = color; ctx.lineWidth = 2.5; ctx.beginPath(); ctx.arc(x, y, r, 0, 7); ctx.stroke();
}

// Where an event stands in its lane, and its shape.
const SHAPES = {
  step: ['dot', 0], call: ['down', -13], return: ['up', -13], write: ['box', 12], sync: ['disk', 12], name: ['box', 12],
  applied: ['diamond', 0], process: ['big', 0], pause: ['pause', 0], resume: ['play', 0], fault: ['cross', 0],
  leader: ['flag', 0], 'dgram-drop': ['lost', -4], timer: ['tick', 0], drop: [null, 0], send: [null, 0], deliver: [null, 0],
};
function shape(kind, x, y, color) {
  ctx.fillStyle = color; ctx.strokeStyle = color; ctx.lineWidth = 1.5; ctx.beginPath();
  switch (kind) {
    case 'dot': ctx.arc(x, y, 2.6, 0, 7); ctx.fill(); break;
    case 'big': ctx.arc(x, y, 5, 0, 7); ctx.fill(); break;
    case 'down': ctx.moveTo(x - 5, y - 4); ctx.lineTo(x + 5, y - 4); ctx.lineTo(x, y + 4); ctx.fill(); break;
    case 'up': ctx.moveTo(x - 5, y + 4); ctx.lineTo(x + 5, y + 4); ctx.lineTo(x, y - 4); ctx.fill(); break;
    case 'box': ctx.strokeRect(x - 2.5, y - 2.5, 5, 5); break;
    case 'disk': ctx.fillRect(x - 3, y - 3, 6, 6); break;
    case 'diamond': ctx.moveTo(x, y - 4.5); ctx.lineTo(x + 4.5, y); ctx.lineTo(x, y + 4.5); ctx.lineTo(x - 4.5, y); ctx.fill(); break;
    case 'pause': ctx.fillRect(x - 4, y - 5, 3, 10); ctx.fillRect(x + 1, y - 5, 3, 10); break;
    case 'play': ctx.moveTo(x - 4, y - 5); ctx.lineTo(x + 5, y); ctx.lineTo(x - 4, y + 5); ctx.fill(); break;
    case 'cross': cross(x, y, 6, color); break;
    case 'lost': cross(x, y, 2.5, color); break;
    case 'flag': ctx.fillRect(x - 1, y - 11, 2, 11); ctx.fillRect(x - 1, y - 11, 8, 5); break;
    case 'tick': ctx.fillRect(x - 0.5, y - 4, 1, 8); break;
  }
}
const EVENT_COLORS = {
  step: '#4c5866', call: '#b8691a', return: '#22806b', write: '#6a7684', sync: '#6a7684', name: '#9aa5b3', applied: '#d07412',
  process: '#1c8a4a', pause: '#c08a00', resume: '#c08a00', fault: '#111', leader: '#5a2f8f', 'dgram-drop': '#d8515c', timer: '#9aa5b3',
};

function paintEvents(marked) {
  const first = upper(EVENTS, state.from - 1, (e) => e.t);
  let last = null;
  for (let i = first; i < EVENTS.length && EVENTS[i].t <= state.to; i++) {
    const e = EVENTS[i], lane = lanes.get(e.node);
    if (!lane || MARKED.has(e.id) !== marked || !visible(e)) continue;
    const [kind, dy] = SHAPES[e.kind] || ['dot', 0];
    if (!kind) continue;
    const x = X(e.t), y = lane.rail + dy, chosen = state.selected === e.id, hit = foundIds.has(e.id);
    if (e.kind === 'return' || e.kind === 'sync') tie(e, x, y, marked);
    // What would fall on the same pixel is drawn once.
    const spot = `${e.node} ${e.kind} ${Math.round(x)}`;
    if (spot === last && !marked && !chosen && !hit) continue;
    last = spot;
    const weighty = e.class === 'always';
    ctx.globalAlpha = marked || chosen || hit || weighty ? 1 : dimmed(false);
    shape(kind, x, y, marked && !weighty ? RED : EVENT_COLORS[e.kind]);
    if (chosen) ring(x, y, 8, '#000');
    if (hit) ring(x, y, 7, '#e0b000');
    hits.push({ x0: x, y0: y, x1: x, y1: y, e });
    if (NUMBER.has(e.id)) badges.push({ x, y, dy: dy > 0 ? 11 : -12, n: NUMBER.get(e.id), id: e.id });
  }
  ctx.globalAlpha = 1;
}
function tie(e, x, y, marked) { // a call to its answer, a write to its sync
  const begun = e.causes.map((c) => BY_ID.get(c)).find((c) => c.kind === (e.kind === 'return' ? 'call' : 'write'));
  if (!begun) return;
  ctx.globalAlpha = marked ? 0.9 : dimmed(false) * 0.7;
  ctx.strokeStyle = marked ? RED : EVENT_COLORS[e.kind]; ctx.lineWidth = marked ? 2 : 1;
  ctx.beginPath(); ctx.moveTo(X(begun.t), y); ctx.lineTo(x, y); ctx.stroke();
}

function paintBadges() {
  const taken = [];
  font(10, true); ctx.textAlign = 'center'; ctx.textBaseline = 'middle';
  badges.sort((a, b) => b.n - a.n);
  for (const b of badges) {
    const x = b.x, w = b.n > 99 ? 11 : 8.5;
    let y = b.y + b.dy;
    const free = () => !taken.some((o) => Math.abs(o.x - x) < w + o.w - 1 && Math.abs(o.y - y) < 14);
    for (const off of [0, -15, 15, -30]) { y = b.y + b.dy + off; if (free()) break; }
    if (!free()) continue;
    taken.push({ x, y, w });
    const now = state.selected === b.id;
    ctx.fillStyle = now ? '#000' : RED;
    ctx.beginPath(); ctx.roundRect(x - w, y - 7, w * 2, 14, 7); ctx.fill();
    ctx.fillStyle = '#fff'; ctx.fillText(String(b.n), x, y + 0.5);
    hits.push({ x0: x, y0: y, x1: x, y1: y, e: BY_ID.get(b.id) });
  }
  ctx.textAlign = 'left';
}

function paintEnd(top) {
  const x = X(D.end), color = FINDING ? RED : '#2e7d4f';
  ctx.strokeStyle = color; ctx.lineWidth = 2; ctx.setLineDash([6, 3]);
  ctx.beginPath(); ctx.moveTo(x, AXIS); ctx.lineTo(x, H - MINI); ctx.stroke(); ctx.setLineDash([]);
  const at = FINDING && BY_ID.get(FINDING.event), lane = at && lanes.get(at.node);
  if (lane) ring(X(at.t), lane.rail + ((SHAPES[at.kind] || [])[1] || 0), 10, RED);
}

function paintGutter(nodes) {
  ctx.fillStyle = '#fff'; ctx.fillRect(0, 0, GUTTER, H - MINI);
  const t = state.cursor === null ? Math.min(state.to, D.end) : Math.min(T(state.cursor), D.end);
  for (const node of nodes) {
    const { y, height } = lanes.get(node), p = pointAt(node, t);
    ctx.fillStyle = '#eef1f4'; ctx.fillRect(0, y + height - 1, GUTTER, 1);
    ctx.textBaseline = 'alphabetic'; ctx.fillStyle = '#1c2430'; font(15, true);
    ctx.fillText(`n${node}`, 10, y + 17);
    font(11); ctx.fillStyle = '#5b6675';
    if (!p) continue;
    const role = ['down', 'follows', 'asks', 'campaigns', 'leads'][p.role];
    ctx.fillText(p.role ? `${role} t${p.term}` : role, 38, y + 16);
    if (!p.role || height < 78) continue;
    MARKS.forEach(([mark, color], i) => {
      ctx.fillStyle = color; ctx.fillText(mark, 10, y + height - 39 + i * 14);
      ctx.textAlign = 'right'; ctx.fillText(`l${p[mark]}`, GUTTER - 10, y + height - 39 + i * 14); ctx.textAlign = 'left';
    });
  }
  font(11); ctx.fillStyle = '#5b6675'; ctx.textBaseline = 'middle';
  ctx.fillText(groupName(state.group), 10, AXIS / 2);
  ctx.fillText('faults', 10, AXIS + 10);
  ctx.strokeStyle = '#d5dae1'; ctx.lineWidth = 1;
  ctx.beginPath(); ctx.moveTo(GUTTER - 0.5, 0); ctx.lineTo(GUTTER - 0.5, H - MINI); ctx.stroke();
}

function paintAxis() {
  const span = state.to - state.from, rough = span / ((W - GUTTER) / 110);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((s) => s >= rough);
  const digits = Math.max(0, Math.min(9, 9 - Math.floor(Math.log10(step))));
  ctx.fillStyle = '#fff'; ctx.fillRect(GUTTER, 0, W, AXIS - 1);
  font(11); ctx.textAlign = 'center'; ctx.textBaseline = 'middle';
  const end = X(D.end), word = FINDING ? 'violation' : 'end', half = 32;
  for (let t = Math.ceil(state.from / step) * step; t <= state.to; t += step) {
    const x = X(t);
    if (x < GUTTER + 5) continue;
    ctx.fillStyle = '#c3cad3'; ctx.fillRect(x, AXIS - 6, 1, 5);
    ctx.fillStyle = '#5b6675';
    if (Math.abs(x - end) > half + 26 && x < W - 24) ctx.fillText(`${seconds(t, digits)} s`, x, AXIS / 2 - 2);
  }
  if (end > GUTTER && end < W + half) {
    const x = Math.min(end, W - half - 2);
    font(11, true); ctx.fillStyle = FINDING ? RED : '#2e7d4f';
    ctx.fillRect(x - half, 2, half * 2, AXIS - 7); ctx.fillStyle = '#fff'; ctx.fillText(word, x, AXIS / 2 - 1);
  }
  if (state.cursor !== null && state.cursor > GUTTER) {
    const t = T(state.cursor), text = `${seconds(t)} s  (${relative(t)})`;
    ctx.fillStyle = '#0000001c'; ctx.fillRect(state.cursor, AXIS, 1, H - MINI - AXIS);
    font(11); const w = ctx.measureText(text).width + 10, x = Math.min(Math.max(state.cursor, GUTTER + w / 2), W - w / 2 - 2);
    ctx.fillStyle = '#1c2430'; ctx.fillRect(x - w / 2, 2, w, AXIS - 7); ctx.fillStyle = '#fff'; ctx.fillText(text, x, AXIS / 2 - 1);
  }
  ctx.textAlign = 'left';
  ctx.fillStyle = '#d5dae1'; ctx.fillRect(0, AXIS - 1, W, 1);
}

// The whole run in small: who leads the group, who is down, where the view is.
const miniEnd = () => Math.max(D.last, D.end, 1);
const miniX = (t) => GUTTER + t / miniEnd() * (W - GUTTER - 10);
function paintMini() {
  const top = H - MINI, rows = D.nodes.length, row = (MINI - 20) / rows;
  ctx.fillStyle = '#f5f7f9'; ctx.fillRect(0, top, W, MINI); ctx.fillStyle = '#d5dae1'; ctx.fillRect(0, top, W, 1);
  font(11); ctx.fillStyle = '#5b6675'; ctx.textBaseline = 'middle';
  ctx.fillText('whole run', 10, top + 12); font(10); ctx.fillText('dark: leads', 10, top + 28); ctx.fillText('black: down', 10, top + 42);
  D.nodes.forEach((node, i) => {
    const points = pointsOf(node), y = top + 5 + i * row;
    for (let k = 0; k < points.length; k++) {
      const p = points[k], x0 = miniX(p.t), x1 = miniX(k + 1 < points.length ? points[k + 1].t : D.end);
      if (x1 - x0 < 0.2 && p.role && p.role !== 4) continue;
      const hue = (p.term * 67 + 200) % 360;
      ctx.fillStyle = !p.role ? '#30363d' : p.role === 4 ? `hsl(${hue} 55% 42%)` : '#e1e6ec';
      ctx.fillRect(x0, y, Math.max(x1 - x0, 0.6), row - 1);
    }
  });
  for (const s of D.spans) {
    if (s.kind !== 'fault') continue;
    ctx.fillStyle = '#e0a24e'; ctx.fillRect(miniX(s.from), H - 13, Math.max(miniX(s.to === null ? D.end : s.to) - miniX(s.from), 1), 3);
  }
  ctx.fillStyle = FINDING ? RED : '#2e7d4f'; ctx.fillRect(miniX(D.end) - 1, top + 2, 2, MINI - 12);
  for (const link of D.chain) { ctx.fillStyle = RED; ctx.fillRect(miniX(link.at), H - 9, 1.5, 7); }
  const x0 = miniX(Math.max(state.from, 0)), x1 = miniX(state.to);
  ctx.strokeStyle = '#1857b6'; ctx.lineWidth = 1.5; ctx.fillStyle = '#1857b61e';
  ctx.fillRect(x0, top + 1, Math.max(x1 - x0, 3), MINI - 2); ctx.strokeRect(x0, top + 1, Math.max(x1 - x0, 3), MINI - 2);
}

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
