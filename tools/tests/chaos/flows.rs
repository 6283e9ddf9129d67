//! Traffic that notices a byte that is missing, wrong or late for good.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use datapath_conformance::netns::Namespace;
use socket2::{Domain, SockAddr, Socket, Type};

/// How long something may take to arrive before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(20);
/// Bytes that a stream sends before it waits for them to come back.
const BLOCK_BYTES: usize = 1024;
/// Datagrams that are sent before they are waited for.
const BURST: u64 = 4;
/// How long each flow rests between two rounds.
const PAUSE: Duration = Duration::from_millis(20);

/// Where a flow goes from and to.
#[derive(Clone, Copy)]
pub(crate) struct Route<'a> {
    pub(crate) name: &'static str,
    pub(crate) from: &'a Namespace,
    pub(crate) to: &'a Namespace,
    /// The address of where it goes to.
    pub(crate) address: IpAddr,
}

/// What a flow came to.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// Rounds there and back, or connections.
    pub(crate) rounds: u64,
    /// The longest one.
    pub(crate) longest: Duration,
    /// Datagrams that did not arrive.
    pub(crate) lost: u64,
}

impl Told {
    fn count(&mut self, begun: Instant) {
        self.rounds += 1;
        self.longest = self.longest.max(begun.elapsed());
    }

    fn and(self, other: Self) -> Self {
        Self {
            rounds: self.rounds + other.rounds,
            longest: self.longest.max(other.longest),
            lost: self.lost + other.lost,
        }
    }
}

/// Flows of a kind, each on a thread of its own.
pub(crate) struct Flows {
    kind: &'static str,
    stop: Arc<AtomicBool>,
    threads: Vec<(String, JoinHandle<Result<Told, String>>)>,
}

impl Flows {
    pub(crate) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            stop: Arc::default(),
            threads: Vec::new(),
        }
    }

    /// Opens a connection that lasts until the end.
    pub(crate) fn stream(&mut self, route: Route<'_>) {
        let listener = route.listen();
        let near = route.connect(listener.local_addr().unwrap()).unwrap();
        let (far, _) = listener.accept().unwrap();
        let number = u64::try_from(self.threads.len()).unwrap();
        let mut stream = Stream {
            near,
            far,
            next: number << 48,
        };
        for end in [&stream.near, &stream.far] {
            end.set_nodelay(true).unwrap();
            end.set_read_timeout(Some(PATIENCE)).unwrap();
            end.set_write_timeout(Some(PATIENCE)).unwrap();
        }
        self.start(route, move |stop| stream.run(stop));
    }

    /// Sends numbered datagrams there and back until the end.
    pub(crate) fn datagrams(&mut self, route: Route<'_>) {
        let far = route
            .to
            .run(|| UdpSocket::bind((route.address, 0)).unwrap());
        let far = far.unwrap();
        let target = far.local_addr().unwrap();
        let near = route.from.run(|| {
            let near = UdpSocket::bind((any(route.address), 0)).unwrap();
            near.connect(target).unwrap();
            near
        });
        let mut datagrams = Datagrams {
            near: near.unwrap(),
            far,
            next: 0,
        };
        self.start(route, move |stop| datagrams.run(stop));
    }

    /// Opens, uses and closes one connection after the other until the end.
    pub(crate) fn connections(&mut self, route: Route<'_>) {
        let listener = route.listen();
        let target = listener.local_addr().unwrap();
        let from = Namespace::open(route.from.name()).unwrap();
        self.start(route, move |stop| {
            let mut told = Told::default();
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                let opened = Route::connect_from(&from, target)
                    .and_then(|near| Ok((near, listener.accept()?.0)));
                let (near, far) = opened.map_err(|error| format!("no connection: {error}"))?;
                for end in [&near, &far] {
                    end.set_read_timeout(Some(PATIENCE)).unwrap();
                }
                let mut stream = Stream {
                    near,
                    far,
                    next: told.rounds << 16,
                };
                stream.round()?;
                stream.close()?;
                told.count(begun);
                thread::sleep(PAUSE);
            }
            Ok(told)
        });
    }

    fn start(
        &mut self,
        route: Route<'_>,
        run: impl FnOnce(&AtomicBool) -> Result<Told, String> + Send + 'static,
    ) {
        let stop = Arc::clone(&self.stop);
        let name = format!("{} {} to {}", self.kind, route.name, route.address);
        let thread = thread::spawn(move || run(&stop));
        self.threads.push((name, thread));
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.threads.len()
    }

    /// Whether one has ended before its time, which is a failure that [`Flows::end`] has.
    pub(crate) fn broken(&self) -> bool {
        self.threads.iter().any(|(_, thread)| thread.is_finished())
    }

    /// Ends them in order. Fails with all that went wrong.
    pub(crate) fn end(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut wrong = Vec::new();
        let mut sum = Told::default();
        let mut fewest = u64::MAX;
        for (name, thread) in self.threads {
            match thread.join().unwrap() {
                Ok(told) => {
                    fewest = fewest.min(told.rounds);
                    sum = sum.and(told);
                }
                Err(error) => wrong.push(format!("{name}: {error}")),
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
        assert!(fewest > 0, "each of them did something");
        println!("{}: {sum:?}", self.kind);
        sum
    }
}

impl Route<'_> {
    fn listen(&self) -> TcpListener {
        let listener = self.to.run(|| TcpListener::bind((self.address, 0)));
        listener.unwrap().unwrap()
    }

    fn connect(&self, target: SocketAddr) -> std::io::Result<TcpStream> {
        Self::connect_from(self.from, target)
    }

    fn connect_from(from: &Namespace, target: SocketAddr) -> std::io::Result<TcpStream> {
        let socket: Socket = from
            .socket(Domain::for_address(target), Type::STREAM, None)
            .unwrap();
        socket.connect_timeout(&SockAddr::from(target), PATIENCE)?;
        Ok(socket.into())
    }
}

/// The address that stands for all of the same family.
fn any(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// Both ends of a connection; what goes over it is a sequence of numbers.
struct Stream {
    near: TcpStream,
    far: TcpStream,
    next: u64,
}

impl Stream {
    fn run(&mut self, stop: &AtomicBool) -> Result<Told, String> {
        let mut told = Told::default();
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            self.round()?;
            told.count(begun);
            thread::sleep(PAUSE);
        }
        self.close()?;
        Ok(told)
    }

    /// Sends a block there and another one back, and checks every byte.
    fn round(&mut self) -> Result<(), String> {
        for to_far in [true, false] {
            let (from, to) = if to_far {
                (&mut self.near, &mut self.far)
            } else {
                (&mut self.far, &mut self.near)
            };
            let words = u64::try_from(BLOCK_BYTES / 8).unwrap();
            let sent: Vec<u8> = (self.next..self.next + words)
                .flat_map(u64::to_be_bytes)
                .collect();
            self.next += words;
            let mut received = [0; BLOCK_BYTES];
            let outcome = from
                .write_all(&sent)
                .and_then(|()| to.read_exact(&mut received));
            let way = if to_far { "there" } else { "back" };
            outcome.map_err(|error| format!("{way}, number {}: {error}", self.next))?;
            if received != sent[..] {
                return Err(format!("{way}, number {}: other bytes", self.next));
            }
        }
        Ok(())
    }

    /// Closes both directions; nothing more may come.
    fn close(&mut self) -> Result<(), String> {
        for (from, to) in [(&self.near, &self.far), (&self.far, &self.near)] {
            let closed = from.shutdown(Shutdown::Write);
            let mut to: &TcpStream = to;
            match closed.and_then(|()| to.read(&mut [0; 16])) {
                Ok(0) => {}
                Ok(more) => return Err(format!("{more} bytes beyond the end")),
                Err(error) => return Err(format!("not closed in order: {error}")),
            }
        }
        Ok(())
    }
}

/// Both ends of a flow of datagrams.
struct Datagrams {
    near: UdpSocket,
    far: UdpSocket,
    next: u64,
}

impl Datagrams {
    fn run(&mut self, stop: &AtomicBool) -> Result<Told, String> {
        let mut told = Told::default();
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let mut source = None;
            for _ in 0..BURST {
                self.next += 1;
                let sent = self.near.send(&self.next.to_be_bytes());
                sent.map_err(|error| format!("not sent: {error}"))?;
            }
            told.lost += self.receive(&self.far, &mut source)?;
            if let Some(source) = source {
                for number in self.next - BURST + 1..=self.next {
                    let sent = self.far.send_to(&number.to_be_bytes(), source);
                    sent.map_err(|error| format!("not answered: {error}"))?;
                }
                told.lost += self.receive(&self.near, &mut None)?;
            }
            told.count(begun);
            thread::sleep(PAUSE);
        }
        Ok(told)
    }

    /// Receives the last burst in any order; returns how many of it are missing.
    fn receive(&self, socket: &UdpSocket, source: &mut Option<SocketAddr>) -> Result<u64, String> {
        let deadline = Instant::now() + PATIENCE;
        let mut missing: Vec<_> = (self.next - BURST + 1..=self.next).collect();
        while !missing.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            socket.set_read_timeout(Some(left)).unwrap();
            let mut received = [0; 16];
            let (length, from) = match socket.recv_from(&mut received) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("number {}: {error}", self.next)),
            };
            let number = received[..length].try_into().map(u64::from_be_bytes);
            let number = number.map_err(|_| format!("a datagram of {length} bytes"))?;
            let place = missing.iter().position(|&missing| missing == number);
            let place = place.ok_or_else(|| format!("{number} came again, or too late"))?;
            missing.remove(place);
            *source = Some(from);
        }
        Ok(u64::try_from(missing.len()).unwrap())
    }
}
