//! Messages between two perches on a stream socket: kind, length, bytes; and descriptors beside them (SCM_RIGHTS).

use std::io::{self, ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::cmsg_space;
use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Hello = 1,
    Prepared,
    State,
    /// A part of the pin table.
    Pins,
    Serve,
    Ready,
    /// What `/metrics` of the old perch says now.
    Metrics,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::Hello, Self::Prepared, Self::State, Self::Pins, Self::Serve, Self::Ready, Self::Metrics];
}

/// More is a mistake: pins come in parts of one MiB, and 100,000 endpoints take some ten.
const LONGEST: u32 = 64 << 20;

/// The kernel's own limit is 253 (SCM_MAX_FD).
const AT_ONCE: usize = 64;

pub(crate) fn write(to: &mut impl Write, kind: Kind, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|n| *n <= LONGEST).ok_or(ErrorKind::InvalidInput)?;
    let mut head = [kind as u8, 0, 0, 0, 0];
    head[1..].copy_from_slice(&length.to_be_bytes());
    to.write_all(&head)?;
    to.write_all(bytes)
}

pub(crate) fn read(from: &mut impl Read) -> io::Result<(Kind, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, length @ ..] = head;
    let length = u32::from_be_bytes(length);
    let kind = Kind::ALL.into_iter().find(|k| *k as u8 == kind).filter(|_| length <= LONGEST);
    let kind = kind.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "no message of another perch"))?;
    let mut bytes = vec![0; length as usize];
    from.read_exact(&mut bytes)?;
    Ok((kind, bytes))
}

/// The bytes of the next message, which must be of this kind.
pub(crate) fn expect(from: &mut impl Read, kind: Kind) -> io::Result<Vec<u8>> {
    match read(from)? {
        (found, bytes) if found == kind => Ok(bytes),
        (found, _) => Err(io::Error::new(ErrorKind::InvalidData, format!("{found:?} instead of {kind:?}"))),
    }
}

/// Gives descriptors to the other side.
pub(crate) fn give(line: &UnixStream, descriptors: &[OwnedFd]) -> io::Result<()> {
    for some in descriptors.chunks(AT_ONCE) {
        let some: Vec<BorrowedFd<'_>> = some.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&some)) {
            return Err(ErrorKind::InvalidInput.into());
        }
        // Descriptors go with a byte, or not at all.
        retry_on_intr(|| sendmsg(line, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL))?;
    }
    Ok(())
}

/// Takes so many descriptors from the other side.
pub(crate) fn take(line: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    let mut taken = Vec::with_capacity(count);
    while taken.len() < count {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let before = taken.len();
        let read =
            retry_on_intr(|| recvmsg(line, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC))?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                taken.extend(descriptors);
            }
        }
        if read.bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if taken.len() == before {
            return Err(io::Error::other("its sockets do not fit; allow more open files"));
        }
    }
    Ok(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_in_their_order() {
        let (mut here, mut there) = UnixStream::pair().unwrap();
        let pipes: Vec<_> = (0..100).map(|_| io::pipe().unwrap()).collect();
        let given: Vec<OwnedFd> = pipes.iter().map(|(_, to)| to.as_fd().try_clone_to_owned().unwrap()).collect();

        write(&mut here, Kind::Hello, b"hello").unwrap();
        give(&here, &given).unwrap();
        write(&mut here, Kind::Serve, b"").unwrap();

        assert_eq!(expect(&mut there, Kind::Hello).unwrap(), b"hello");
        let taken = take(&there, given.len()).unwrap();
        assert_eq!(expect(&mut there, Kind::Serve).unwrap(), b"");
        for (n, ((mut from, to), taken)) in pipes.into_iter().zip(taken).enumerate() {
            drop(to);
            let byte = u8::try_from(n).unwrap();
            std::fs::File::from(taken).write_all(&[byte]).unwrap();
            let mut read = [0];
            from.read_exact(&mut read).unwrap();
            assert_eq!(read, [byte]);
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for bytes in [&[0u8, 0, 0, 0, 0][..], &[9, 0, 0, 0, 0], &[1, 255, 0, 0, 0], &[1, 0, 0, 0, 2, 1], b""] {
            assert!(read(&mut &*bytes).is_err(), "{bytes:?}");
        }
        assert!(expect(&mut &[2u8, 0, 0, 0, 0][..], Kind::Ready).is_err());
    }
}
