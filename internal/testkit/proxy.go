package testkit

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
)

// Verdict is what a Proxy does with a frame.
type Verdict int

const (
	// Pass sends it on.
	Pass Verdict = iota
	// Cut resets the connection instead (RST): the frame is lost.
	Cut
	// CutHalf sends the first half, then resets the connection.
	CutHalf
	// Swallow loses this frame and all that follow on the connection, which stays
	// open: a peer that is gone without a word.
	Swallow
)

// Frame is one request or answer on its way, by what the Kafka protocol says of it.
type Frame struct {
	Key    int16 // of the API: kmsg.Produce.Key() and others
	Answer bool
	Size   int // bytes behind the length
}

// Proxy stands between clients and a broker and sees every frame of the Kafka
// protocol (a length of four bytes, then, in a request, the API's key, its
// version and a correlation ID, which the answer begins with).
type Proxy struct {
	listener net.Listener
	target   string
	wait     sync.WaitGroup

	mu    sync.Mutex
	hook  func(Frame) Verdict
	conns map[net.Conn]bool
	down  bool
}

// StartProxy listens at addr and connects to target for whoever comes. It ends with the test.
func StartProxy(t testing.TB, addr, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{listener: l, target: target, conns: map[net.Conn]bool{}}
	p.wait.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.Unplug()
		p.wait.Wait()
	})
	return p
}

// Addr is where it listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Set gives it a hook, which is called for each frame, from many goroutines, and
// holds the frame for as long as it takes; nil lets all pass. It returns when no
// call of the former hook can begin any more.
func (p *Proxy) Set(hook func(Frame) Verdict) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = hook
}

// Unplug resets all connections and refuses new ones, until Plug.
func (p *Proxy) Unplug() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = true
	for c := range p.conns {
		reset(c)
	}
}

// Plug ends Unplug.
func (p *Proxy) Plug() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.down = false
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.wait.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	broker, err := net.Dial("tcp", p.target)
	if err != nil {
		reset(client)
		return
	}
	defer broker.Close()
	if !p.keep(client, broker) {
		return
	}
	defer p.forget(client, broker)
	link := &proxyLink{proxy: p, asked: map[int32]int16{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		link.pipe(broker, client, false)
	}()
	link.pipe(client, broker, true)
	<-done
}

func (p *Proxy) keep(conns ...net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		if p.down {
			reset(c)
		} else {
			p.conns[c] = true
		}
	}
	return !p.down
}

func (p *Proxy) forget(conns ...net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range conns {
		delete(p.conns, c)
	}
}

func (p *Proxy) judge(f Frame) Verdict {
	p.mu.Lock()
	hook := p.hook
	p.mu.Unlock()
	if hook == nil {
		return Pass
	}
	return hook(f)
}

// proxyLink is one client's connection.
type proxyLink struct {
	proxy *Proxy
	mu    sync.Mutex
	asked map[int32]int16 // API key by correlation ID
}

// pipe moves frames until either side has had enough, and then closes both.
func (l *proxyLink) pipe(to, from net.Conn, answers bool) {
	defer to.Close()
	defer from.Close()
	for swallowed := false; ; {
		frame, err := readFrame(from)
		if err != nil {
			return
		}
		if swallowed {
			continue
		}
		switch l.proxy.judge(Frame{Key: l.key(frame, answers), Answer: answers, Size: len(frame) - 4}) {
		case Cut:
			reset(to)
			reset(from)
			return
		case CutHalf:
			_, _ = to.Write(frame[:len(frame)/2]) // it is reset all the same
			reset(to)
			reset(from)
			return
		case Swallow:
			swallowed = true
		case Pass:
			if _, err := to.Write(frame); err != nil {
				return
			}
		}
	}
}

// key finds the API that a frame belongs to.
func (l *proxyLink) key(frame []byte, answer bool) int16 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if answer {
		id := int32(binary.BigEndian.Uint32(frame[4:]))
		key := l.asked[id]
		delete(l.asked, id)
		return key
	}
	if len(frame) < 12 {
		return -1
	}
	key := int16(binary.BigEndian.Uint16(frame[4:]))
	l.asked[int32(binary.BigEndian.Uint32(frame[8:]))] = key
	return key
}

const maxFrame = 64 << 20

// readFrame reads a whole frame, its length included.
func readFrame(from io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(from, length[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n < 4 || n > maxFrame {
		return nil, errors.New("not the Kafka protocol")
	}
	frame := make([]byte, 4+n)
	copy(frame, length[:])
	_, err := io.ReadFull(from, frame[4:])
	return frame, err
}

// reset closes a connection so that the peer sees a reset, not an orderly end.
func reset(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // closed already, or closed next
	}
	c.Close()
}
