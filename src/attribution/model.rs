//! What is learned of an application: which call a request makes next, and when.
//!
//! A request is a walk through `Node`s: its route, the calls that it has made,
//! those that it waits for, and the last one's kind. From each node the next step
//! is a call, the return of one, or the end of the request. Per node the model
//! counts calls and ends by the time since the node was entered, and the time
//! spent there (competing risks, as survival analysis has it: hazard = events /
//! time at risk, in half-octave buckets). Calls that no request makes, the
//! background, have a rate for each kind.
//!
//! Everything is a weight rather than a count: what is not certain is learned by
//! its probability. All is bounded, and forgotten by halves.

use super::text::Token;
use std::collections::VecDeque;

/// Half-octave buckets of the time in a node: the first ends at 32 µs, the last
/// is everything beyond half a second.
pub(super) const BUCKETS: usize = 29;
const FIRST_US: u64 = 32;
/// Nodes of one application at most, and kinds of calls that have a name.
const NODES_MOST: usize = 2048;
const NAMES_MOST: usize = 255;
/// Names of one class at most, the class's own among them.
const NAMES_OF_CLASS: usize = 24;
/// A hash that came so often is not forgotten for one that has come for the first time.
const USED_OFTEN: u8 = 8;
/// A node that has been entered so often is halved: what the application did
/// long ago is forgotten.
const HALVED_AT: f32 = 400.0;
/// The same, for requests of which every step was certain.
const SURE_HALVED_AT: f32 = 400.0;
/// What a call counts for the background that may be a request's.
const DOUBTED: f32 = 0.05;
/// Calls of the background, and milliseconds, that are taken for seen before anything
/// was: who calls all the time needs to have been idle for a while to show that it is
/// not the background that calls.
const UNWATCHED: (f32, f32) = (0.3, 100.0);
/// Calls made and calls outstanding are counted up to this.
const COUNTED: u8 = 15;

/// A small number for a route or a kind of call. 0 stands for all of them together.
pub type Name = u8;

/// A hash that has a name.
#[derive(Clone, Copy, Debug)]
struct Named {
    hash: u32,
    /// A coarser hash, of several names.
    class: u32,
    /// How often it came, up to `USED_OFTEN`, and when it last did.
    uses: u8,
    used: u64,
}

/// Gives small numbers to hashes. When there are no more, the one goes that has not been
/// used for longest; of those that came a few times first, as long as there are many.
#[derive(Debug, Default)]
struct Names {
    names: Vec<Named>,
    clock: u64,
}

impl Names {
    /// The name of a hash, and whether another hash had it before.
    fn of(&mut self, hash: u32, class: u32) -> (Name, bool) {
        self.clock += 1;
        let used = self.clock;
        let name = |at: usize| u8::try_from(at + 1).unwrap_or(0);
        if let Some(at) = self.names.iter().position(|known| known.hash == hash) {
            if let Some(known) = self.names.get_mut(at) {
                known.used = used;
                known.uses = known.uses.saturating_add(1).min(USED_OFTEN);
            }
            return (name(at), false);
        }
        let new = Named {
            hash,
            class,
            uses: 1,
            used,
        };
        if self.names.len() < NAMES_MOST {
            self.names.push(new);
            return (name(self.names.len() - 1), false);
        }
        let rarely = |known: &Named| known.uses < USED_OFTEN;
        let all = self.names.iter().filter(|known| rarely(known)).count() < NAMES_MOST / 4;
        let names = self.names.iter_mut().enumerate();
        let oldest = names
            .filter(|(_, known)| all || rarely(known))
            .min_by_key(|(_, known)| known.used);
        let Some((at, known)) = oldest else {
            return (0, false);
        };
        *known = new;
        (name(at), true)
    }

    /// The name of the first hash; or of the second, its class, if that has many names
    /// already: of each one then little would be seen.
    fn of_class(&mut self, [hash, class]: [u32; 2]) -> (Name, bool) {
        let known = self.names.iter().any(|known| known.hash == hash);
        let others = self.names.iter().filter(|known| known.class == class);
        if known || others.count() < NAMES_OF_CLASS {
            self.of(hash, class)
        } else {
            self.of(class, class)
        }
    }
}

/// Where a request is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// 0 for any route: what is known of those of which nothing is.
    pub route: Name,
    /// Calls made.
    pub made: u8,
    /// Calls that it waits for.
    pub out: u8,
    /// The kind of the last call; 0 before the first.
    pub last: Name,
}

impl Place {
    /// Where requests of a route begin.
    pub fn start(route: Name) -> Self {
        Self {
            route,
            made: 0,
            out: 0,
            last: 0,
        }
    }

    fn number(self) -> u32 {
        u32::from_le_bytes([self.route, self.made, self.out, self.last])
    }

    /// After one more call.
    pub fn called(self, kind: Name) -> Self {
        Self {
            made: (self.made + 1).min(COUNTED),
            out: (self.out + 1).min(COUNTED),
            last: kind,
            ..self
        }
    }

    /// After a call has returned.
    pub fn returned(self) -> Self {
        Self {
            out: self.out.saturating_sub(1),
            ..self
        }
    }

    /// What any route does there.
    fn anywhere(self) -> Self {
        Self {
            route: 0,
            last: 0,
            ..self
        }
    }
}

/// Requests that may have made a call, by how long they have been about to, and
/// which of them it was. Some applications serve those first that have waited
/// longest, an event loop above all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// How many there were, less 2: the last stands for more, too.
    queue: u8,
    /// How many came before it.
    place: u8,
    /// The probability of each place by everything else, in parts of 255.
    shares: [u8; Self::PLACES],
}

impl Turn {
    const QUEUES: usize = 3;
    const PLACES: usize = 4;

    /// Of a queue with these probabilities: the turn of each. Nothing where there
    /// is no choice.
    pub fn all(shares: &[f64]) -> Vec<Self> {
        let Some(queue) = shares.len().checked_sub(2) else {
            return Vec::new();
        };
        let mut by_place = [0u8; Self::PLACES];
        let place = |place: usize| place.min(Self::PLACES - 1);
        for (at, share) in shares.iter().enumerate() {
            if let Some(sum) = by_place.get_mut(place(at)) {
                *sum = sum.saturating_add((share * 255.0) as u8);
            }
        }
        let turns = (0..shares.len()).map(|at| Self {
            queue: queue.min(Self::QUEUES - 1) as u8,
            place: place(at) as u8,
            shares: by_place,
        });
        turns.collect()
    }
}

/// Names a node of the model.
pub type NodeId = u16;

/// How a request left a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// By a call of this kind.
    Called(Name),
    /// A call that it waited for returned.
    Returned,
    /// The request was answered.
    Ended,
}

/// A weight for each kind of call.
#[derive(Clone, Debug, Default)]
struct Kinds(Vec<(Name, f32)>);

impl Kinds {
    #[inline(never)]
    fn of(&self, kind: Name) -> f32 {
        let found = self.0.iter().find(|(of, _)| *of == kind);
        found.map_or(0.0, |(_, count)| *count)
    }

    #[inline(never)]
    fn add(&mut self, kind: Name, weight: f32) {
        match self.0.iter_mut().find(|(of, _)| *of == kind) {
            Some((_, count)) => *count += weight,
            None => self.0.push((kind, weight)),
        }
    }

    #[inline(never)]
    fn halve(&mut self) {
        self.0.retain_mut(|(_, count)| {
            *count *= 0.5;
            *count > 1e-3
        });
    }
}

#[derive(Clone, Debug)]
struct Node {
    place: Place,
    /// The node of [`Place::anywhere`].
    above: NodeId,
    /// Milliseconds at risk, calls and ends, by bucket.
    at_risk: [f32; BUCKETS],
    calls: [f32; BUCKETS],
    ends: [f32; BUCKETS],
    kinds: Kinds,
    /// Of requests of which every step was certain: times that they left, and
    /// how many of them ended.
    sure: [f32; 2],
    /// Times that it was left.
    left: f32,
    /// Sums of the three arrays.
    sums: [f32; 3],
}

impl Node {
    fn new(place: Place, above: NodeId) -> Self {
        Self {
            place,
            above,
            at_risk: [0.0; BUCKETS],
            calls: [0.0; BUCKETS],
            ends: [0.0; BUCKETS],
            kinds: Kinds::default(),
            sure: [0.0; 2],
            left: 0.0,
            sums: [0.0; 3],
        }
    }

    fn halve(&mut self) {
        for values in [&mut self.at_risk, &mut self.calls, &mut self.ends] {
            for value in values {
                *value *= 0.5;
            }
        }
        self.kinds.halve();
        self.left *= 0.5;
        for sum in &mut self.sums {
            *sum *= 0.5;
        }
    }
}

/// The bucket of a time in microseconds.
pub(super) fn bucket(us: u64) -> usize {
    let ratio = us / FIRST_US;
    if ratio == 0 {
        return 0;
    }
    let octave = ratio.ilog2() as usize;
    // The upper half of an octave begins at the square root of two.
    let upper = us.saturating_mul(us) >= (FIRST_US << octave).saturating_pow(2).saturating_mul(2);
    (1 + 2 * octave + usize::from(upper)).min(BUCKETS - 1)
}

/// Where a bucket begins, in milliseconds.
pub(super) fn begin_ms(bucket: usize) -> f32 {
    const FIRST_MS: f32 = FIRST_US as f32 / 1000.0;
    match bucket.checked_sub(1) {
        None => 0.0,
        Some(n) => {
            let octave = FIRST_MS * (1u32 << (n / 2)) as f32;
            if n % 2 == 0 {
                octave
            } else {
                octave * std::f32::consts::SQRT_2
            }
        }
    }
}

pub(super) fn ms(us: u64) -> f32 {
    us as f32 / 1000.0
}

/// A bucket's value with a share of its neighbours'.
fn smooth(values: &[f32; BUCKETS], at: usize) -> f32 {
    let value = |at: Option<usize>| at.and_then(|at| values.get(at)).copied().unwrap_or(0.0);
    0.5 * value(Some(at)) + 0.25 * (value(at.checked_sub(1)) + value(Some(at + 1)))
}

/// What is known of one node at one time: rates per millisecond.
#[derive(Clone, Copy, Debug, Default)]
struct Rates {
    call: f32,
    end: f32,
}

/// What the requests of a route do, whatever their state.
#[derive(Clone, Debug, Default)]
struct Habit {
    /// Milliseconds in flight.
    ms: f32,
    kinds: Kinds,
}

/// How common tokens are: counters that several tokens share, so that each is
/// counted too often rather than too rarely.
#[derive(Debug)]
struct Sketch {
    counters: Vec<[u16; 2]>,
    messages: f32,
}

impl Default for Sketch {
    fn default() -> Self {
        Self {
            counters: vec![[0; 2]; Self::COUNTERS],
            messages: 0.0,
        }
    }
}

impl Sketch {
    const COUNTERS: usize = 2048;
    /// As if there had been so many messages without it, by how rare it looks.
    const BEFORE: [f32; 4] = [20.0, 200.0, 5_000.0, 50_000.0];

    fn places(token: Token) -> [usize; 2] {
        let number = token.to_u32();
        [number >> 2, number >> 13].map(|part| part as usize % Self::COUNTERS)
    }

    fn add(&mut self, tokens: &[Token]) {
        self.messages += 1.0;
        for token in tokens {
            let [first, second] = Self::places(*token);
            if let Some([count, _]) = self.counters.get_mut(first) {
                *count = count.saturating_add(1);
            }
            if let Some([_, count]) = self.counters.get_mut(second) {
                *count = count.saturating_add(1);
            }
        }
        if self.messages > 5_000.0 {
            self.messages *= 0.5;
            for [first, second] in &mut self.counters {
                *first /= 2;
                *second /= 2;
            }
        }
    }

    /// The part of all messages that have it, but for one.
    fn share(&self, token: Token) -> f32 {
        let [first, second] = Self::places(token);
        let first = self.counters.get(first).map_or(0, |counts| counts[0]);
        let second = self.counters.get(second).map_or(0, |counts| counts[1]);
        let others = f32::from(first.min(second).saturating_sub(1));
        let before = Self::BEFORE.get(token.rarity()).copied().unwrap_or(20.0);
        (others + 0.5) / (self.messages + before)
    }
}

/// What has been learned.
#[derive(Debug)]
pub struct Model {
    routes: Names,
    kinds: Names,
    /// By place, sorted.
    index: Vec<(u32, NodeId)>,
    nodes: Vec<Node>,
    /// Nodes of names that are gone, the first one first.
    free: VecDeque<NodeId>,
    /// By route: what its requests do in all.
    habits: Vec<Habit>,
    /// By kind: calls of the background: those while nothing was in flight, and
    /// what others probably were.
    background: Vec<[f32; 2]>,
    /// By kind: calls seen at all.
    seen: Vec<f32>,
    /// Milliseconds during which nothing was in flight, and something was.
    watched: [f32; 2],
    /// Milliseconds during which just one request was; and calls then, by kind.
    alone_ms: f32,
    alone: Vec<f32>,
    /// By kind: calls of requests, and those that had a token of theirs.
    matches: Vec<[f32; 2]>,
    tokens: Sketch,
    /// By length of the queue and place in it: how often it was that one's turn, and
    /// how often it should have been by everything else.
    turns: [[[f32; 2]; Turn::PLACES]; Turn::QUEUES],
}

impl Default for Model {
    fn default() -> Self {
        let root = Place::start(0);
        Self {
            routes: Names::default(),
            kinds: Names::default(),
            index: Vec::new(),
            nodes: vec![Node::new(root, 0)],
            free: VecDeque::new(),
            habits: vec![Habit::default(); NAMES_MOST + 1],
            background: vec![[0.0; 2]; NAMES_MOST + 1],
            seen: vec![0.0; NAMES_MOST + 1],
            watched: [0.0; 2],
            alone_ms: 0.0,
            alone: vec![0.0; NAMES_MOST + 1],
            matches: vec![[0.0; 2]; NAMES_MOST + 1],
            tokens: Sketch::default(),
            turns: Default::default(),
        }
    }
}

impl Model {
    /// A route's name, and whether another route had it before.
    pub fn route(&mut self, hash: u32) -> (Name, bool) {
        let (name, again) = self.routes.of(hash, hash);
        if again {
            self.remove_nodes(|place| place.route == name);
            if let Some(habit) = self.habits.get_mut(usize::from(name)) {
                *habit = Habit::default();
            }
        }
        (name, again)
    }

    /// A kind's name: by the first hash, or by the second if there are too many of its
    /// class; and the name of its class. Each with whether another kind had it before.
    pub fn kind(&mut self, hashes: [u32; 2]) -> [(Name, bool); 2] {
        let [_, class] = hashes;
        let coarse = self.kinds.of(class, class);
        let fine = self.kinds.of_class(hashes);
        for (name, again) in [coarse, fine] {
            if again {
                self.forget_kind(name);
            }
        }
        [fine, coarse]
    }

    fn forget_kind(&mut self, name: Name) {
        self.remove_nodes(|place| place.last == name);
        let habits = self.habits.iter_mut().map(|habit| &mut habit.kinds);
        for kinds in self
            .nodes
            .iter_mut()
            .map(|node| &mut node.kinds)
            .chain(habits)
        {
            kinds.0.retain(|(kind, _)| *kind != name);
        }
        let name = usize::from(name);
        for counts in [&mut self.background, &mut self.matches] {
            if let Some(counts) = counts.get_mut(name) {
                *counts = [0.0; 2];
            }
        }
        for counts in [&mut self.seen, &mut self.alone] {
            if let Some(count) = counts.get_mut(name) {
                *count = 0.0;
            }
        }
    }

    /// Forgets the nodes of some places. Requests that are there learn nothing of it any
    /// more, or a little of what comes in its stead.
    fn remove_nodes(&mut self, gone: impl Fn(Place) -> bool) {
        let (nodes, free) = (&mut self.nodes, &mut self.free);
        self.index.retain(|(_, id)| {
            let Some(node) = nodes.get_mut(usize::from(*id)) else {
                return false;
            };
            let gone = *id != 0 && gone(node.place);
            if gone {
                *node = Node::new(node.place, node.above);
                free.push_back(*id);
            }
            !gone
        });
    }

    /// The node of a place.
    pub fn node(&mut self, place: Place) -> NodeId {
        let number = place.number();
        let find = |index: &[(u32, NodeId)]| index.binary_search_by_key(&number, |known| known.0);
        if let Some((_, node)) = find(&self.index).ok().and_then(|at| self.index.get(at)) {
            return *node;
        }
        let anywhere = place.anywhere();
        let above = match anywhere == place {
            true => 0,
            false => self.node(anywhere),
        };
        let id = if self.nodes.len() < NODES_MOST {
            self.nodes.push(Node::new(place, above));
            (self.nodes.len() - 1) as NodeId
        } else if let Some(id) = self.free.pop_front() {
            if let Some(node) = self.nodes.get_mut(usize::from(id)) {
                *node = Node::new(place, above);
            }
            id
        } else {
            return above;
        };
        let (Ok(at) | Err(at)) = find(&self.index);
        self.index.insert(at, (number, id));
        id
    }

    fn at(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(usize::from(id))
    }

    fn rates_of(node: &Node, at: usize) -> Rates {
        // What an application does that nobody has watched yet.
        let prior = Rates {
            call: if node.place.out == 0 { 0.1 } else { 0.01 },
            end: if node.place.out == 0 { 0.1 } else { 0.001 },
        };
        // A little of the node's mean, so that times which were never seen are
        // neither impossible nor the rule.
        let [risk, calls, ends] = node.sums;
        let mean = |events: f32, prior: f32| (events + 0.02 * prior) / (risk + 0.02);
        let pseudo = 0.1 * risk / (node.left + 1.0) + 0.01;
        let here = smooth(&node.at_risk, at) + pseudo;
        let rate = |values: &[f32; BUCKETS], events: f32, prior: f32| {
            (smooth(values, at) + 0.5 * pseudo * mean(events, prior)) / here
        };
        Rates {
            call: rate(&node.calls, calls, prior.call),
            end: rate(&node.ends, ends, prior.end),
        }
    }

    fn rates(&self, id: NodeId, at: usize) -> Rates {
        let Some(node) = self.at(id) else {
            return Rates::default();
        };
        let here = Self::rates_of(node, at);
        if node.left > 50.0 || node.above == id {
            return here;
        }
        let Some(above) = self.at(node.above) else {
            return here;
        };
        let above = Self::rates_of(above, at);
        let share = node.left / (node.left + 2.0);
        Rates {
            call: share * here.call + (1.0 - share) * above.call,
            end: share * here.end + (1.0 - share) * above.end,
        }
    }

    /// Calls of this kind per millisecond, by a request that has been in the
    /// node for so long.
    pub fn call_rate(&self, id: NodeId, us: u64, kind: Name) -> f32 {
        let Some(node) = self.at(id) else { return 0.0 };
        let part = |node: &Node| {
            let [_, calls, _] = node.sums;
            (node.kinds.of(kind) + 0.002) / (calls + 0.02)
        };
        let mut share = part(node);
        if node.left < 50.0 {
            if let Some(above) = self.at(node.above) {
                let own = node.left / (node.left + 2.0);
                share = own * share + (1.0 - own) * part(above);
            }
        }
        self.rates(id, bucket(us)).call * share
    }

    /// Ends per millisecond, of a request that has been in the node for so long.
    pub fn end_rate(&self, id: NodeId, us: u64) -> f32 {
        self.rates(id, bucket(us)).end
    }

    /// The probability that nothing happens from one time in the node to a
    /// later one.
    pub fn survival(&self, id: NodeId, from_us: u64, to_us: u64) -> f32 {
        let mut sum = 0.0;
        let (first, last) = (bucket(from_us), bucket(to_us));
        for at in first..=last {
            let begin = if at == first {
                ms(from_us)
            } else {
                begin_ms(at)
            };
            let end = if at == last {
                ms(to_us)
            } else {
                begin_ms(at + 1)
            };
            let rates = self.rates(id, at);
            sum += (rates.call + rates.end) * (end - begin).max(0.0);
        }
        (-sum).exp()
    }

    /// Calls of this kind per millisecond by a request of this route of which
    /// nothing else is known.
    pub fn habit_rate(&self, route: Name, kind: Name) -> f32 {
        let Some(habit) = self.habits.get(usize::from(route)) else {
            return 0.0;
        };
        (habit.kinds.of(kind) + 0.002) / (habit.ms + 1.0)
    }

    /// A request of this route was in flight for so long.
    pub fn learn_duration(&mut self, route: Name, us: u64) {
        for route in [route, 0] {
            if let Some(habit) = self.habits.get_mut(usize::from(route)) {
                habit.ms += ms(us);
                if habit.ms > 200_000.0 {
                    habit.ms *= 0.5;
                    habit.kinds.halve();
                }
            }
        }
    }

    fn learn_habit(&mut self, route: Name, kind: Name, weight: f32) {
        for route in [route, 0] {
            if let Some(habit) = self.habits.get_mut(usize::from(route)) {
                habit.kinds.add(kind, weight);
            }
        }
    }

    /// Calls of this kind that were of the background: while nothing was in flight,
    /// and while something was.
    fn of_nobody(&self, kind: Name) -> [f32; 2] {
        let counts = self.background.get(usize::from(kind));
        counts.copied().unwrap_or_default()
    }

    /// Calls of this kind per millisecond that no request makes. What happens while
    /// nothing is in flight is certain, and counts for more.
    pub fn background_rate(&self, kind: Name) -> f32 {
        let [idle, busy] = self.of_nobody(kind);
        let [idle_ms, busy_ms] = self.watched;
        (idle + DOUBTED * busy + 0.01) / (idle_ms + DOUBTED * busy_ms + 10.0)
    }

    /// Of a request that is alone in flight: its calls of this kind per
    /// millisecond, and those of the background, by the plainest of estimates. What
    /// happens while nothing is in flight must be of the background, and no more
    /// than that is while one request is.
    pub fn alone_rates(&self, kind: Name) -> (f32, f32) {
        let [idle, _] = self.of_nobody(kind);
        let background = (idle + UNWATCHED.0) / (self.watched[0] + UNWATCHED.1);
        let alone = self.alone.get(usize::from(kind)).copied().unwrap_or(0.0);
        let calls = alone / (self.alone_ms + UNWATCHED.1);
        ((calls - background).max(0.0), background)
    }

    /// How much likelier it makes a request that it is its turn.
    pub fn turn_ratio(&self, turn: Turn) -> f32 {
        let queue = self.turns.get(usize::from(turn.queue));
        let counts = queue.and_then(|queue| queue.get(usize::from(turn.place)));
        let [was, should] = counts.copied().unwrap_or_default();
        (was + 5.0) / (should + 5.0)
    }

    /// It has turned out that it was that one's turn.
    pub fn learn_turn(&mut self, turn: Turn) {
        let Some(queue) = self.turns.get_mut(usize::from(turn.queue)) else {
            return;
        };
        for ([_, should], share) in queue.iter_mut().zip(turn.shares) {
            *should += f32::from(share) / 255.0;
        }
        if let Some([was, _]) = queue.get_mut(usize::from(turn.place)) {
            *was += 1.0;
        }
        if queue.iter().map(|[was, _]| was).sum::<f32>() > 200.0 {
            for counts in queue {
                *counts = counts.map(|count| 0.5 * count);
            }
        }
    }

    /// How many calls of this kind there were.
    pub fn seen(&self, kind: Name) -> f32 {
        self.seen.get(usize::from(kind)).copied().unwrap_or(0.0)
    }

    /// A call was seen that is of the background with this probability. `tokens`:
    /// those that no request in flight has. `in_flight`: how many requests are.
    pub fn learn_call(&mut self, kind: Name, tokens: &[Token], background: f32, in_flight: usize) {
        let kind = usize::from(kind);
        if let Some(count) = self.alone.get_mut(kind).filter(|_| in_flight == 1) {
            *count += 1.0;
        }
        if let Some([idle, busy]) = self.background.get_mut(kind) {
            *(if in_flight == 0 { idle } else { busy }) += background;
        }
        if let Some(count) = self.seen.get_mut(kind) {
            *count += 1.0;
        }
        self.tokens.add(tokens);
    }

    /// A request came with these tokens.
    pub fn learn_tokens(&mut self, tokens: &[Token]) {
        self.tokens.add(tokens);
    }

    /// How much likelier a call is a request's, if both have this token: the more,
    /// the fewer others have it.
    pub fn token_ratio(&self, token: Token) -> f32 {
        0.9 / self.tokens.share(token)
    }

    /// A call of this kind has been found to be a request's, with or without a
    /// token of it.
    pub fn learn_match(&mut self, kind: Name, matched: bool) {
        if let Some([calls, matches]) = self.matches.get_mut(usize::from(kind)) {
            *calls += 1.0;
            *matches += f32::from(u8::from(matched));
            if *calls > 1000.0 {
                *calls *= 0.5;
                *matches *= 0.5;
            }
        }
    }

    /// How much less likely a call of this kind is a request's, if no token of it
    /// is in it.
    pub fn no_match(&self, kind: Name) -> f32 {
        let [calls, matches] = self
            .matches
            .get(usize::from(kind))
            .copied()
            .unwrap_or_default();
        // Not to be sure of after a few.
        (calls - matches + 2.0) / (calls + 2.0)
    }

    /// So much time has passed.
    pub fn watch(&mut self, us: u64, in_flight: usize) {
        let idle = in_flight == 0;
        if in_flight == 1 {
            self.alone_ms += ms(us);
            if self.alone_ms > 200_000.0 {
                self.alone_ms *= 0.5;
                for count in &mut self.alone {
                    *count *= 0.5;
                }
            }
        }
        let [idle_ms, busy_ms] = &mut self.watched;
        *(if idle { &mut *idle_ms } else { &mut *busy_ms }) += ms(us);
        // A quarter of an hour, by halves.
        if *idle_ms + *busy_ms > 900_000.0 {
            *idle_ms *= 0.5;
            *busy_ms *= 0.5;
            for counts in &mut self.background {
                *counts = counts.map(|count| 0.5 * count);
            }
        }
    }

    /// A request of which every step was certain has left a node.
    pub fn learn_sure(&mut self, id: NodeId, ended: bool) {
        if let Some(node) = self.nodes.get_mut(usize::from(id)) {
            let [left, ends] = &mut node.sure;
            *left += 1.0;
            *ends += f32::from(u8::from(ended));
            if *left > SURE_HALVED_AT {
                node.sure = node.sure.map(|count| 0.5 * count);
            }
        }
    }

    /// How often requests have left the node, of which every step was certain.
    pub fn sure(&self, id: NodeId) -> f32 {
        self.at(id).map_or(0.0, |node| node.sure[0])
    }

    /// The share of those that left the node by ending.
    pub fn sure_end(&self, id: NodeId) -> f32 {
        self.at(id)
            .map_or(0.0, |node| node.sure[1] / (node.sure[0] + 0.1))
    }

    /// A request has left a node after so long, with this probability.
    pub fn learn(&mut self, id: NodeId, us: u64, step: Step, weight: f32) {
        let above = self.at(id).map(|node| node.above);
        if let (Step::Called(kind), Some(node)) = (step, self.at(id)) {
            self.learn_habit(node.place.route, kind, weight);
        }
        self.learn_at(id, us, step, weight);
        if let Some(above) = above.filter(|above| *above != id) {
            self.learn_at(above, us, step, weight);
        }
    }

    fn learn_at(&mut self, id: NodeId, us: u64, step: Step, weight: f32) {
        let Some(node) = self.nodes.get_mut(usize::from(id)) else {
            return;
        };
        let last = bucket(us);
        for (at, at_risk) in node.at_risk.iter_mut().enumerate().take(last + 1) {
            let end = if at == last { ms(us) } else { begin_ms(at + 1) };
            *at_risk += weight * (end - begin_ms(at)).max(0.0);
        }
        let [risk, calls, ends] = &mut node.sums;
        *risk += weight * ms(us);
        let values = match step {
            Step::Called(kind) => {
                *calls += weight;
                node.kinds.add(kind, weight);
                Some(&mut node.calls)
            }
            Step::Ended => {
                *ends += weight;
                Some(&mut node.ends)
            }
            Step::Returned => None,
        };
        if let Some(count) = values.and_then(|values| values.get_mut(last)) {
            *count += weight;
        }
        node.left += weight;
        if node.left > HALVED_AT {
            node.halve();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_meet() {
        for us in 0..2_000_000u64 {
            let at = bucket(us);
            assert!(begin_ms(at) <= ms(us) + 1e-3, "{us}");
            assert!(
                at == BUCKETS - 1 || ms(us) < begin_ms(at + 1) + 1e-3,
                "{us}"
            );
        }
    }
}
