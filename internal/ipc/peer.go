package ipc

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// peer is who sits at the other end of a connection, as the kernel says.
type peer struct {
	uid, gid uint32
	pid      int32
	known    bool
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
	return p.known && (slices.Contains(a.UIDs, p.uid) || slices.Contains(a.GIDs, p.gid))
}

func (a Access) isOperator(p peer) bool { return p.known && slices.Contains(a.Operators, p.uid) }

// peerOf reads SO_PEERCRED (unix(7)): the credentials at the time of connect.
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
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", err)
	}
	if credErr != nil {
		return peer{}, fmt.Errorf("read peer credentials: %w", credErr)
	}
	return peer{uid: cred.Uid, gid: cred.Gid, pid: cred.Pid, known: true}, nil
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
	once    sync.Once
	done    func()
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.done)
	return err
}
