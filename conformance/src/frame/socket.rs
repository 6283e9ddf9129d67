//! Receives every frame of a namespace (packet(7)).

use std::{
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd},
    time::{Duration, Instant, SystemTime},
};

use nix::{
    cmsg_space,
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    setsockopt_impl, sockopt_impl,
    sys::{
        socket::{
            ControlMessageOwned, LinkAddr, MsgFlags, recvmsg, setsockopt,
            sockopt::{RcvBufForce, ReceiveTimestampns, RxqOvfl},
        },
        time::TimeSpec,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{Checksum, Direction, Frame};
use crate::{
    error::{Error, Result},
    netns::Namespace,
};

/// Room for frames that arrive faster than they are read: some thousand full-sized GSO frames.
const QUEUE_BYTES: usize = 64 << 20;
/// The longest frame that is received whole; GSO frames have up to 65,535 bytes of packet.
const FRAME_BYTES: usize = 128 << 10;
/// `ETH_P_ALL` of `include/uapi/linux/if_ether.h`, in the width it has on the wire.
const EVERY_PROTOCOL: u16 = 3;
/// Length of `struct virtio_net_hdr` (`include/uapi/linux/virtio_net.h`).
const INFO_BYTES: usize = 10;
/// Flag in `struct virtio_net_hdr`: the checksum is still to be completed.
const NEEDS_CSUM: u8 = 1;

sockopt_impl!(
    /// Puts a `struct virtio_net_hdr` before every frame (packet(7)): the only way to learn
    /// whether a checksum is complete and whether the frame stands for several segments.
    VnetHeader,
    SetOnly,
    libc::SOL_PACKET,
    libc::PACKET_VNET_HDR,
    bool
);

/// A socket that sees every frame, in both directions, on one or all interfaces of a namespace.
///
/// It sees them from the moment it is open. Before the network stack: a frame that eBPF at tcx
/// drops or redirects on ingress is seen, one that it drops on egress is not.
#[derive(Debug)]
pub struct FrameSocket {
    socket: Socket,
    interface: Option<u32>,
    buffer: Vec<u8>,
    control: Vec<u8>,
    lost: u32,
}

impl FrameSocket {
    /// Opens a socket for the interface with this number, or for all.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] with what the kernel refused.
    pub fn open(namespace: &Namespace, interface: Option<u32>) -> Result<Self> {
        // A packet socket with a protocol is at work from its first moment on, on all
        // interfaces; binding it to one would only come after. Sorting out costs little here.
        let every = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
        let socket = namespace.socket(Domain::PACKET, Type::RAW, Some(every))?;
        let options = setsockopt(&socket, RcvBufForce, &QUEUE_BYTES)
            .and_then(|()| setsockopt(&socket, ReceiveTimestampns, &true))
            .and_then(|()| setsockopt(&socket, RxqOvfl, &1))
            .and_then(|()| setsockopt(&socket, VnetHeader, &true));
        options.map_err(Error::os("set up a packet socket in", namespace.name()))?;
        Ok(Self {
            socket,
            interface,
            buffer: vec![0; INFO_BYTES + FRAME_BYTES],
            control: cmsg_space!(TimeSpec, u32),
            lost: 0,
        })
    }

    /// Keeps only so many bytes of each frame from now on; its length is known all the same.
    #[must_use]
    pub fn cut(mut self, frame_bytes: usize) -> Self {
        self.buffer.truncate(INFO_BYTES.saturating_add(frame_bytes));
        self
    }

    /// Waits for the next frame; `None` when there is none until the deadline. A deadline in the
    /// past asks for what has arrived already.
    ///
    /// # Errors
    ///
    /// What the kernel refused: `ENETDOWN` cannot be, as the socket is bound to no interface.
    pub fn next(&mut self, deadline: Instant) -> io::Result<Option<Frame>> {
        loop {
            if !self.wait(deadline)? {
                return Ok(None);
            }
            match self.receive() {
                Ok(Some(frame)) if self.interface.is_none_or(|index| index == frame.interface) => {
                    return Ok(Some(frame));
                }
                Ok(_) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                // A kind of GSO that the kernel cannot describe (SCTP, IP fragments); it has
                // taken the frame off the queue.
                Err(Errno::EINVAL) => self.lost = self.lost.saturating_add(1),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Returns how many frames were lost so far because they were not read in time.
    #[must_use]
    pub fn lost(&self) -> u32 {
        self.lost
    }

    fn wait(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so as not to spin through the last millisecond.
            let left = left + Duration::from_micros(999);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut wanted = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut wanted, timeout) {
                Ok(0) if Instant::now() >= deadline => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn receive(&mut self) -> Result<Option<Frame>, Errno> {
        let mut parts = [IoSliceMut::new(&mut self.buffer)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        let message = recvmsg::<LinkAddr>(
            self.socket.as_raw_fd(),
            &mut parts,
            Some(&mut self.control),
            flags,
        )?;
        let mut timestamp = None;
        for part in message.cmsgs()? {
            match part {
                ControlMessageOwned::ScmTimestampns(time) => timestamp = Some(Duration::from(time)),
                // The kernel's count since the socket was opened.
                ControlMessageOwned::RxqOvfl(lost) => self.lost = lost,
                _ => {}
            }
        }
        let (Some(link), length) = (message.address, message.bytes) else {
            return Ok(None);
        };
        let Some((info, rest)) = self.buffer.split_first_chunk::<INFO_BYTES>() else {
            return Ok(None);
        };
        let original_len = length.saturating_sub(INFO_BYTES);
        let bytes = rest.get(..original_len).unwrap_or(rest).to_vec();
        let (checksum, segment_bytes) = read_info(*info);
        let outgoing = link.pkttype() == libc::PACKET_OUTGOING;
        Ok(Some(Frame {
            bytes,
            interface: u32::try_from(link.ifindex()).unwrap_or(0),
            direction: if outgoing {
                Direction::Out
            } else {
                Direction::In
            },
            timestamp: timestamp.unwrap_or_else(now),
            checksum,
            segment_bytes,
            original_len,
        }))
    }
}

/// Reads a `struct virtio_net_hdr`, in the byte order of this machine:
///
/// ```text
/// flags u8 | gso_type u8 | hdr_len u16 | gso_size u16 | csum_start u16 | csum_offset u16
/// ```
fn read_info(info: [u8; INFO_BYTES]) -> (Checksum, Option<u16>) {
    let [flags, gso_type, _, _, s0, s1, c0, c1, o0, o1] = info;
    let checksum = if flags & NEEDS_CSUM == 0 {
        Checksum::Complete
    } else {
        Checksum::Partial {
            start: usize::from(u16::from_ne_bytes([c0, c1])),
            offset: usize::from(u16::from_ne_bytes([o0, o1])),
        }
    };
    let segment_bytes = (gso_type != 0).then(|| u16::from_ne_bytes([s0, s1]));
    (checksum, segment_bytes)
}

fn now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}
