//! A flow from each pod that comes to the outside, which goes on being answered when the pod has
//! gone: none of that is for the pod that has its addresses next.

use std::{
    collections::VecDeque,
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use datapath_conformance::netns::Namespace;

/// Begins every datagram; the number of the pod follows.
const MARK: &[u8] = b"chaos: pod ";
/// How often all pods there were are answered again.
const AGAIN: Duration = Duration::from_millis(20);
/// How many of them.
const KNOWN: usize = 32;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// The port that the pod with number 0 would have.
const FIRST_PORT: u16 = 40_000;

/// The pod's number in a frame that belongs to such a flow.
pub(crate) fn number_in(frame: &[u8]) -> Option<u64> {
    let place = frame
        .windows(MARK.len())
        .position(|window| window == MARK)?;
    let number = frame.get(place + MARK.len()..)?.first_chunk()?;
    Some(u64::from_be_bytes(*number))
}

fn datagram(number: u64) -> Vec<u8> {
    [MARK, &number.to_be_bytes()].concat()
}

/// The host outside, which does not stop answering.
pub(crate) struct Teller {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Teller {
    pub(crate) fn start(outside: &Namespace, address: IpAddr) -> Self {
        let socket = outside.run(|| UdpSocket::bind((address, 0)).unwrap());
        let socket = socket.unwrap();
        let address = socket.local_addr().unwrap();
        socket.set_read_timeout(Some(AGAIN)).unwrap();
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut known = VecDeque::new();
            let mut again = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                let mut buffer = [0; 64];
                match socket.recv_from(&mut buffer) {
                    Ok((length, source)) => {
                        let number = number_in(&buffer[..length]).unwrap();
                        if !known.contains(&(source, number)) {
                            known.push_front((source, number));
                            known.truncate(KNOWN);
                        }
                        socket.send_to(&buffer[..length], source).unwrap();
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => panic!("{error}"),
                }
                if again.elapsed() >= AGAIN {
                    again = Instant::now();
                    for &(source, number) in &known {
                        socket.send_to(&datagram(number), source).unwrap();
                    }
                }
            }
        });
        Self {
            address,
            stop,
            thread,
        }
    }

    pub(crate) fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// A pod's end of such a flow.
pub(crate) struct Tale {
    socket: UdpSocket,
    number: u64,
}

impl Tale {
    /// Opens the flow of the pod with this number, which has the address.
    pub(crate) fn open(pod: &Namespace, address: IpAddr, number: u64, teller: &Teller) -> Self {
        let port = FIRST_PORT + u16::try_from(number % 20_000).unwrap();
        let socket = pod.run(|| {
            let socket = UdpSocket::bind((address, port)).unwrap();
            socket.connect(teller.address).unwrap();
            socket
        });
        let socket = socket.unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, number }
    }

    /// Asks, and gets an answer that is not an earlier one's.
    pub(crate) fn go_on(&self) {
        self.socket.set_nonblocking(true).unwrap();
        while self.socket.recv(&mut [0; 64]).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
        self.socket.send(&datagram(self.number)).unwrap();
        let mut buffer = [0; 64];
        let length = self.socket.recv(&mut buffer).unwrap();
        assert_eq!(number_in(&buffer[..length]), Some(self.number));
    }
}
