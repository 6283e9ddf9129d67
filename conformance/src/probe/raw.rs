//! Whole Ethernet frames, in and out of one interface.

use std::{
    io,
    os::fd::IntoRawFd,
    time::{Duration, Instant},
};

use nix::libc;
use pnet_datalink::{Channel, Config, DataLinkSender, MacAddr, NetworkInterface};
use socket2::{Domain, Protocol, Type};

use crate::{
    error::{Error, Result},
    frame::{Frame, FrameSocket},
    netns::Namespace,
};

/// An interface to send made-up frames from, and to see every frame on.
///
/// What is sent leaves by the interface as if the network stack had sent it, without a word from
/// the stack: with any addresses, to anyone.
pub struct RawPort {
    name: String,
    mac: [u8; 6],
    sender: Box<dyn DataLinkSender>,
    receiver: FrameSocket,
}

impl std::fmt::Debug for RawPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawPort")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl RawPort {
    /// Opens an interface. What crosses it from now on can be received.
    ///
    /// # Errors
    ///
    /// [`Error::NoInterface`], or [`Error::Os`] with what the kernel refused.
    pub fn open(namespace: &Namespace, interface: &str) -> Result<Self> {
        let link = namespace.link(interface)?;
        let name = format!("{interface} in {}", namespace.name());
        let receiver = FrameSocket::open(namespace, Some(link.index))?;
        // Without a protocol it receives nothing until it is bound, which pnet does.
        let socket = namespace.socket(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        let described = NetworkInterface {
            name: link.name,
            description: String::new(),
            index: link.index,
            mac: Some(MacAddr::from(link.mac)),
            ips: Vec::new(),
            flags: 0,
        };
        let config = Config {
            // From here on the descriptor is pnet's.
            socket_fd: Some(socket.into_raw_fd()),
            promiscuous: false,
            ..Config::default()
        };
        let channel =
            pnet_datalink::channel(&described, config).map_err(Error::os("open", &name))?;
        let Channel::Ethernet(sender, _) = channel else {
            let unsupported = io::Error::from_raw_os_error(libc::EOPNOTSUPP);
            return Err(Error::os("open an Ethernet channel on", &name)(unsupported));
        };
        Ok(Self {
            name,
            mac: link.mac,
            sender,
            receiver,
        })
    }

    /// Returns the interface's Ethernet address.
    #[must_use]
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Sends a frame as it is.
    ///
    /// Whether it was dropped on the way is not told: one end of a netkit pair tells its sender
    /// (`NET_XMIT_DROP`, seen as `ENOBUFS`), one of a veth pair has no way to know.
    ///
    /// # Errors
    ///
    /// [`Error::Os`]: `EMSGSIZE` above the interface's MTU, `ENETDOWN` when it is off.
    pub fn send(&mut self, frame: &[u8]) -> Result<()> {
        let sent = self.sender.send_to(frame, None);
        match sent.unwrap_or_else(|| Err(io::ErrorKind::WriteZero.into())) {
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => {
                Err(Error::os("send a frame out of", &self.name)(error))
            }
            _ => Ok(()),
        }
    }

    /// Waits for a frame that `wanted` takes, and drops those before it; `None` when there is
    /// none within `timeout`. Frames that leave the interface are among them.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] with what the kernel refused.
    pub fn receive(
        &mut self,
        timeout: Duration,
        wanted: impl Fn(&Frame) -> bool,
    ) -> Result<Option<Frame>> {
        let deadline = Instant::now() + timeout;
        loop {
            let next = self.receiver.next(deadline);
            match next.map_err(Error::os("receive frames on", &self.name))? {
                Some(frame) if wanted(&frame) => return Ok(Some(frame)),
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }
}
