package ipc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peer is who sits at the other end of a connection, as the kernel says.
type peer struct {
	uid   uint32
	gids  []uint32 // the first group, then the supplementary ones
	pid   int32
	known bool
}

// Access lists who may use the socket beyond what its mode allows. Empty lists
// allow everybody whom the mode lets in.
type Access struct {
	UIDs, GIDs []uint32 // may connect
	Operators  []uint32 // UIDs that may retry and purge
}

func (a Access) allows(p peer) bool {
	if len(a.UIDs) == 0 && len(a.GIDs) == 0 {
		return true
	}
	if !p.known {
		return false
	}
	return slices.Contains(a.UIDs, p.uid) || slices.ContainsFunc(p.gids, func(g uint32) bool { return slices.Contains(a.GIDs, g) })
}

func (a Access) isOperator(p peer) bool { return p.known && slices.Contains(a.Operators, p.uid) }

// peerOf reads SO_PEERCRED and SO_PEERGROUPS (unix(7), socket(7)): the
// credentials at the time of connect.
func peerOf(c net.Conn) (peer, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return peer{}, fmt.Errorf("not a Unix connection: %T", c)
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	var cred *unix.Ucred
	var groups []uint32
	var credErr, groupsErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		groups, groupsErr = peerGroups(fd)
	}); err != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	if err := errors.Join(credErr, groupsErr); err != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	return peer{uid: cred.Uid, gids: append([]uint32{cred.Gid}, groups...), pid: cred.Pid, known: true}, nil
}

// peerGroups reads the peer's supplementary groups: a pod's fsGroup is one of
// those. x/sys has no call of its own for it.
func peerGroups(fd uintptr) ([]uint32, error) {
	groups := make([]uint32, 32)
	for {
		size := uint32(4 * len(groups))
		_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_PEERGROUPS,
			uintptr(unsafe.Pointer(&groups[0])), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // the kernel writes at most size bytes
		switch errno {
		case 0:
			return groups[:size/4], nil
		case unix.ERANGE: // size is what it takes
			groups = make([]uint32, size/4)
		default:
			return nil, errno
		}
	}
}

type peerKey struct{}

func peerFrom(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}

// connections bounds and counts the open connections. Beyond the bound nothing
// is accepted: the kernel's backlog waits, and idle connections time out.
// Strangers, who may not connect, are told so, a few at a time, and take no place
// from anybody else.
type connections struct {
	net.Listener
	access    Access
	slots     chan struct{}
	strangers chan struct{}

	mu   sync.Mutex
	open int       // strangers aside
	idle time.Time // since when none is open
}

// maxStrangers hear at one time that they may not connect; more are hung up on.
const maxStrangers = 16

func limitConnections(l net.Listener, most int, access Access) *connections {
	return &connections{Listener: l, access: access, slots: make(chan struct{}, most), strangers: make(chan struct{}, maxStrangers), idle: time.Now()}
}

func (c *connections) Accept() (net.Conn, error) {
	c.slots <- struct{}{}
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			<-c.slots
			return nil, err
		}
		p, err := peerOf(conn)
		if c.access.allows(p) {
			c.count(+1)
			return &countedConn{Conn: conn, peer: p, peerErr: err, done: func() { c.count(-1); <-c.slots }}, nil
		}
		select {
		case c.strangers <- struct{}{}:
			<-c.slots
			return &countedConn{Conn: conn, peer: p, peerErr: err, done: func() { <-c.strangers }}, nil
		default:
			_ = conn.Close() // nothing was read or written
		}
	}
}

func (c *connections) count(by int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open += by
	if c.open == 0 {
		c.idle = time.Now()
	}
}

// idleSince returns since when no client has been connected; ok is false while
// one is.
func (c *connections) idleSince() (t time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.idle, c.open == 0
}

type countedConn struct {
	net.Conn
	peer    peer
	peerErr error
	unread  []byte // was read already, by whom the connection was handed over
	once    sync.Once
	done    func()
}

func (c *countedConn) Read(p []byte) (int, error) {
	if len(c.unread) == 0 {
		return c.Conn.Read(p)
	}
	n := copy(p, c.unread)
	c.unread = c.unread[n:]
	return n, nil
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.done)
	return err
}
