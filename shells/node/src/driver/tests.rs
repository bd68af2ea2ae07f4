//! The driver between a real core and hands that the test moves: what is to be written, applied
//! and sent waits until the test looks at it.

use std::{
    sync::{Mutex, atomic::AtomicBool},
    task::{Context, Poll, Wake, Waker},
};

use bytes::Bytes;
use highwater_core::{
    Boot, ClusterId, Config, Identity, Incarnation, Member, Message, Now, Outcome, Position,
    Record, Recovered, WriteId,
};
use highwater_store::state::StateOptions;
use tokio::{
    sync::{mpsc, oneshot::Receiver as Answer},
    time,
};

use super::*;
use crate::workers::tests::Poisoned;

/// The runtime's clock, which the tests move.
#[derive(Clone, Debug)]
struct TestClock(time::Instant);

impl Clock for TestClock {
    fn now(&self) -> Now {
        Now { mono: Instant(micros(self.0.elapsed())), wall_ms: 1_767_225_600_000 }
    }

    async fn sleep_until(&self, at: Instant) {
        time::sleep_until(self.0 + Duration::from_micros(at.0)).await;
    }
}

/// What was sent.
#[derive(Debug, Default)]
struct Sent(Mutex<Vec<(NodeId, PeerMessage)>>);

impl Transport for Sent {
    fn send(&self, messages: Vec<(NodeId, PeerMessage)>) {
        self.0.lock().unwrap().extend(messages);
    }
}

/// The worker's end of the driver's hands.
struct Workers {
    log: UnboundedReceiver<(WriteId, Vec<Record>)>,
    state: UnboundedReceiver<StateJob>,
    /// Whether what is to be applied is.
    applying: bool,
}

impl Workers {
    /// What they have completed by now.
    fn work(&mut self) -> Vec<Input> {
        let mut done = Vec::new();
        while let Ok((write, _)) = self.log.try_recv() {
            done.push(Input::Persisted { write });
        }
        while self.applying
            && let Ok(job) = self.state.try_recv()
        {
            done.push(match job {
                StateJob::ReadControl { group, lsn, .. } => {
                    let at = Position { lsn, ..Position::default() };
                    Input::Control { group, at, rows: Vec::new() }
                }
                StateJob::Apply { group, entries } => {
                    let ops = entries.iter().filter(|entry| entry.kind.has_outcome());
                    let outcomes = ops.map(|_| Outcome::default()).collect();
                    Input::Applied { group, upto: entries.last().unwrap().lsn, outcomes }
                }
                StateJob::Checkpoint { group, checkpoint } => {
                    Input::Checkpointed { group, lsn: checkpoint.at.lsn }
                }
                StateJob::Install { .. } => panic!("no snapshot was asked for"),
                StateJob::Lost { group, reason } => Input::StateLost { group, reason },
                StateJob::Reopen { .. } => continue,
            });
        }
        done
    }
}

struct Rig {
    driver: Driver<TestClock, Arc<Sent>>,
    workers: Workers,
    sent: Arc<Sent>,
    inputs: Vec<Input>,
}

fn peer(node: u64, boot: u64) -> Peer {
    let member = Member { node: NodeId(node), incarnation: Incarnation(u128::from(node)) };
    Peer { member, boot: Boot { counter: boot, nonce: boot * 1_000_000 } }
}

impl Rig {
    /// Node 1 of so many, as it starts for the `boot`-th time.
    fn new(nodes: u64, boot: u64) -> Rig {
        let Peer { member, boot } = peer(1, boot);
        let nodes = (1..=nodes).map(NodeId).collect();
        let identity = Identity { cluster: ClusterId(7), member, boot, starts: Vec::new(), nodes };
        let clock = TestClock(time::Instant::now());
        let found = Recovered { room: 1 << 40, ..Recovered::default() };
        let node =
            Node::recover(Config::default(), identity.clone(), 1, clock.now(), found).unwrap();
        let (log, log_jobs) = mpsc::unbounded_channel();
        let (state, state_jobs) = mpsc::unbounded_channel();
        let sent = Arc::new(Sent::default());
        let hands = Hands {
            clock,
            node,
            transport: sent.clone(),
            shared: Arc::new(Shared::new()),
            about: status::About {
                identity,
                addresses: BTreeMap::new(),
                http: String::new(),
                version: String::new(),
            },
            log,
            loads: mpsc::unbounded_channel().0,
            state,
            transfers: Transfers { donor: mpsc::channel(1).0, receiver: mpsc::channel(1).0 },
            states: Arc::new(States::new(Box::new(Poisoned), StateOptions::default()).unwrap()),
        };
        let workers = Workers { log: log_jobs, state: state_jobs, applying: true };
        Rig { driver: Driver::new(hands), workers, sent, inputs: Vec::new() }
    }

    /// A node alone, with a database.
    async fn alone() -> (Rig, GroupId) {
        let mut rig = Rig::new(1, 1);
        rig.pass_for(1000).await;
        let created = rig.ask(create("db"));
        rig.pass_for(1000).await;
        let Some(Reply::Created { group, .. }) = answered(created) else { panic!("no database") };
        (rig, group)
    }

    /// One pass of the driver's loop, without the waiting.
    fn pass(&mut self) {
        self.driver.now = self.driver.hands.clock.now().mono;
        self.driver.expire(&mut self.inputs);
        self.driver.step(&mut self.inputs, &mut Vec::new());
        self.inputs.extend(self.workers.work());
    }

    async fn pass_for(&mut self, ms: u64) {
        for _ in 0..ms / 5 {
            self.pass();
            time::advance(Duration::from_millis(5)).await;
        }
        self.pass();
    }

    fn command(&mut self, command: Command) {
        self.driver.on_command(command, &mut self.inputs);
    }

    fn ask_within(&mut self, request: Ask, deadline: Deadline) -> Answer<Option<Reply>> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Request { request, deadline, reply });
        answer
    }

    fn ask(&mut self, request: Ask) -> Answer<Option<Reply>> {
        self.ask_within(request, minute())
    }

    fn forward(&mut self, to: u64) -> Answer<Option<ForwardReply>> {
        let (reply, answer) = oneshot::channel();
        let Ask::Forwardable(request) = create("db") else { unreachable!() };
        self.command(Command::Forward { to: NodeId(to), request, deadline: minute(), reply });
        answer
    }

    fn view(&mut self) -> Answer<Arc<Vec<NodeView>>> {
        let (reply, answer) = oneshot::channel();
        self.command(Command::Cluster { reply });
        answer
    }

    fn hear(&mut self, from: Peer, message: PeerMessage) {
        self.driver.on_inbound(Inbound { from, message }, &mut self.inputs);
    }

    fn hear_sign_of_life(&mut self, from: Peer) {
        let sent = Instant(1);
        let beat = Message::Heartbeat { generation: 0, sent, echo: None };
        self.hear(from, PeerMessage::Core(beat));
    }

    fn sent(&self) -> Vec<(NodeId, PeerMessage)> {
        std::mem::take(&mut self.sent.0.lock().unwrap())
    }

    fn sent_forwards(&self) -> Vec<u64> {
        let forward = |message| match message {
            PeerMessage::Forward { id, .. } => Some(id),
            _ => None,
        };
        self.sent().into_iter().filter_map(|(_, message)| forward(message)).collect()
    }

    fn sent_queries(&self) -> usize {
        let is_query = |message: &PeerMessage| matches!(message, PeerMessage::StatusQuery { .. });
        self.sent().iter().filter(|(_, message)| is_query(message)).count()
    }
}

fn create(name: &str) -> Ask {
    Ask::Forwardable(ForwardRequest::CreateDatabase { name: name.to_owned() })
}

fn propose(group: GroupId) -> Ask {
    let payload = Bytes::from_static(b"op");
    Ask::Forwardable(ForwardRequest::Propose { group, payload, once: None })
}

fn minute() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

/// The answer that must have come by now.
fn answered<T>(mut answer: Answer<T>) -> T {
    answer.try_recv().expect("an answer")
}

fn is_waiting<T>(answer: &mut Answer<T>) -> bool {
    matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

/// Looks at the routes the moment it is woken.
struct Looks {
    shared: Arc<Shared>,
    knew: AtomicBool,
}

impl Wake for Looks {
    fn wake(self: Arc<Self>) {
        let routes = self.shared.routes();
        let group = routes.databases.get("db");
        let knew = group.is_some_and(|group| routes.leaders.contains_key(group));
        self.knew.store(knew, Ordering::Relaxed);
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_comes_after_the_routes_that_it_rests_on() {
    let mut rig = Rig::new(1, 1);
    rig.pass_for(1000).await;
    let mut created = rig.ask(create("db"));
    let shared = rig.driver.hands.shared.clone();
    let looks = Arc::new(Looks { shared, knew: AtomicBool::new(false) });
    let waker = Waker::from(looks.clone());
    let polled = Pin::new(&mut created).poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    rig.pass_for(100).await;
    let polled = Pin::new(&mut created).poll(&mut Context::from_waker(&waker));
    assert!(matches!(polled, Poll::Ready(Ok(Some(Reply::Created { .. })))), "{polled:?}");
    assert!(
        looks.knew.load(Ordering::Relaxed),
        "the database was unknown when it was answered for"
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_to_an_earlier_boot_is_none_to_this_one() {
    let mut rig = Rig::new(3, 1);
    rig.hear_sign_of_life(peer(2, 1));
    rig.pass();
    let _answer = rig.forward(2);
    rig.pass();
    let of_old = rig.sent_forwards();
    assert_eq!(of_old.len(), 1);

    let mut rig = Rig::new(3, 2);
    rig.hear_sign_of_life(peer(2, 1));
    rig.pass();
    let mut answer = rig.forward(2);
    rig.pass();
    assert_ne!(rig.sent_forwards(), of_old);
    rig.hear(peer(2, 1), PeerMessage::ForwardReply { id: of_old[0], reply: ForwardReply::Unknown });
    assert!(is_waiting(&mut answer));
}

#[tokio::test(start_paused = true)]
async fn what_a_silent_node_was_to_carry_out_is_unknown() {
    let mut rig = Rig::new(3, 1);
    rig.hear_sign_of_life(peer(2, 1));
    rig.hear_sign_of_life(peer(3, 1));
    rig.pass();
    let (mut of_silent, mut of_live) = (rig.forward(2), rig.forward(3));
    rig.pass_for(200).await;
    rig.hear_sign_of_life(peer(3, 1));
    assert!(is_waiting(&mut of_silent));
    // It leads nothing, so no change of leaders tells of its end.
    rig.pass_for(150).await;
    assert_eq!(answered(of_silent), None);
    assert!(is_waiting(&mut of_live));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_forwarded_to_a_silent_node() {
    let mut rig = Rig::new(3, 1);
    rig.pass();
    let refused = ForwardReply::Rejected(Reject::NotLeader { leader: None });
    assert_eq!(answered(rig.forward(2)), Some(refused));
    rig.pass();
    assert!(rig.sent_forwards().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_write_to_a_group_that_is_quarantined_is_answered_at_once() {
    let (mut rig, group) = Rig::alone().await;
    rig.workers.applying = false;
    let mut write = rig.ask(propose(group));
    let mut other = rig.ask(create("other"));
    rig.pass();
    rig.pass();
    assert!(is_waiting(&mut write));
    rig.inputs.push(Input::StateFailed { group, reason: String::from("a test") });
    rig.pass();
    assert_eq!(answered(write), None);
    // Other groups go on.
    rig.pass();
    rig.pass();
    assert!(matches!(other.try_recv(), Ok(Some(Reply::Created { .. }))));
}

#[tokio::test(start_paused = true)]
async fn the_time_in_the_queue_counts() {
    let (mut rig, group) = Rig::alone().await;
    let deadline = Deadline::after(Duration::from_millis(100));
    time::advance(Duration::from_millis(100)).await;
    let late = rig.ask_within(propose(group), deadline);
    assert_eq!(answered(late), Some(Reply::Rejected(Reject::Expired)));
}

#[tokio::test(start_paused = true)]
async fn a_full_node_makes_room_of_abandoned_calls_and_can_be_drained() {
    let mut rig = Rig::new(1, 1);
    let mut waiting: Vec<_> =
        (0..REQUESTS_MAX).map(|_| rig.ask(Ask::Read { group: GroupId(9) })).collect();
    time::advance(Duration::from_millis(1)).await;
    rig.driver.now = rig.driver.hands.clock.now().mono;
    let busy = Some(Reply::Rejected(Reject::Busy));
    assert_eq!(answered(rig.ask(create("db"))), busy);
    let mut drain = rig.ask(Ask::Drain);
    assert!(is_waiting(&mut drain), "a drain is always taken");

    drop((waiting.split_off(1), drain));
    time::advance(Duration::from_millis(1)).await;
    rig.driver.now = rig.driver.hands.clock.now().mono;
    let mut admitted = rig.ask(create("db"));
    assert!(is_waiting(&mut admitted) && is_waiting(&mut waiting[0]));
    assert_eq!(rig.driver.waiting.len(), 2, "nobody else waits");
}

#[tokio::test(start_paused = true)]
async fn a_peer_gets_a_minute_at_most() {
    let mut rig = Rig::new(3, 1);
    let Ask::Forwardable(request) = create("db") else { unreachable!() };
    rig.hear(peer(2, 1), PeerMessage::Forward { id: 1, budget_us: u64::MAX, request });
    let expires: Vec<Instant> = rig.driver.waiting.values().map(|w| w.expires).collect();
    assert_eq!(expires, [rig.driver.now.plus(60_000_000)]);
}

#[tokio::test(start_paused = true)]
async fn one_view_is_gathered_at_a_time_and_none_is_older_than_its_question() {
    let mut rig = Rig::new(2, 1);
    rig.pass();
    let first = rig.view();
    rig.pass();
    assert_eq!(rig.sent_queries(), 1);
    let (mut second, mut third) = (rig.view(), rig.view());
    rig.pass();
    assert_eq!(rig.sent_queries(), 0, "one is under way");

    let reply = |rig: &Rig| {
        let id = rig.driver.gathering.as_ref().unwrap().id;
        PeerMessage::StatusReply { id, status: NodeStatus::default() }
    };
    let status = reply(&rig);
    rig.hear(peer(2, 1), status);
    assert!(answered(first).iter().all(|view| view.status.is_some()));
    assert!(is_waiting(&mut second) && is_waiting(&mut third));
    rig.pass();
    assert_eq!(rig.sent_queries(), 1, "the next is for all who asked meanwhile");
    let status = reply(&rig);
    rig.hear(peer(2, 1), status);
    assert_eq!(answered(second), answered(third));
    assert!(rig.driver.gathering.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_waits_for_the_answers_under_way() {
    let (mut rig, group) = Rig::alone().await;
    rig.workers.applying = false;
    let write = rig.ask(propose(group));
    let Rig { driver, mut workers, mut inputs, .. } = rig;
    let (done, completions) = mpsc::unbounded_channel();
    let (_deliver, inbound) = mpsc::channel(1);
    let (commands, command_queue) = mpsc::channel(1);
    inputs.drain(..).for_each(|input| done.send(input).unwrap());
    let sources = Sources { completions, inbound, commands: command_queue };
    let running = tokio::spawn(driver.run(sources));
    assert!(commands.send(Command::Stop).await.is_ok());
    for at in 0..100 {
        workers.applying = at > 30;
        workers.work().into_iter().for_each(|input| drop(done.send(input)));
        time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(answered(write), Some(Reply::Applied { .. })));
    assert_eq!(running.await.unwrap(), Exit::Drained);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_stops_tells_its_peers_what_it_could_not_wait_for() {
    let mut rig = Rig::new(3, 1);
    // Not formed, it can't tell yet who leads: a peer's request waits.
    let reply = Waiter::Peer { peer: peer(2, 1), id: 5 };
    rig.driver.note_sender(peer(2, 1));
    let expires = Instant(u64::MAX);
    let waiting = Waiting { expires, writes_to: None, waiter: reply };
    rig.driver.waiting.insert(RequestId(1), waiting);
    let Rig { driver, sent, .. } = rig;
    let (_done, completions) = mpsc::unbounded_channel();
    let (_deliver, inbound) = mpsc::channel(1);
    let (commands, command_queue) = mpsc::channel(1);
    assert!(commands.send(Command::Stop).await.is_ok());
    let began = time::Instant::now();
    let exit = driver.run(Sources { completions, inbound, commands: command_queue }).await;
    assert_eq!(exit, Exit::Drained);
    assert!(began.elapsed() >= STOP_GRACE && began.elapsed() < 2 * STOP_GRACE);
    let told = PeerMessage::ForwardReply { id: 5, reply: ForwardReply::Unknown };
    assert!(sent.0.lock().unwrap().contains(&(NodeId(2), told)));
}

#[tokio::test(start_paused = true)]
async fn a_rolled_back_peer_is_told_what_is_remembered_of_it() {
    let mut rig = Rig::new(3, 1);
    let mut hears = |boot: u64, message: Message| {
        let (mut inputs, mut effects) = (Vec::new(), Vec::new());
        let message = PeerMessage::Core(message);
        rig.driver.on_inbound(Inbound { from: peer(2, boot), message }, &mut inputs);
        rig.driver.step(&mut inputs, &mut effects);
        std::mem::take(&mut *rig.sent.0.lock().unwrap())
    };
    hears(5, Message::FormProbe);
    let told = hears(3, Message::Recall { from: GroupId(0) });
    let answers = |(to, message): &(NodeId, PeerMessage)| {
        *to == NodeId(2) && matches!(message, PeerMessage::Core(Message::Recalled { .. }))
    };
    assert!(told.iter().any(answers), "{told:?}");
}
