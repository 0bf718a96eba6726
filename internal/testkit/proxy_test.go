package testkit

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// echoServer answers each request with its correlation ID and 40 bytes.
func echoServer(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					f, err := readFrame(c)
					if err != nil {
						return
					}
					answer := make([]byte, 48)
					binary.BigEndian.PutUint32(answer, 44)
					copy(answer[4:], f[8:12])
					if _, err := c.Write(answer); err != nil {
						return
					}
				}
			}()
		}
	}()
	return l.Addr().String()
}

// ask sends a request of an API and returns how many bytes of the answer came.
func ask(c net.Conn, key, id int) (int, error) {
	request := make([]byte, 14)
	binary.BigEndian.PutUint32(request, 10)
	binary.BigEndian.PutUint16(request[4:], uint16(key))
	binary.BigEndian.PutUint32(request[8:], uint32(id))
	if _, err := c.Write(request); err != nil {
		return 0, err
	}
	return io.ReadFull(c, make([]byte, 48))
}

func TestProxyDoesAsItsHookSays(t *testing.T) {
	p := StartProxy(t, "127.0.0.1:0", echoServer(t))
	dial := func() net.Conn {
		c, err := net.Dial("tcp", p.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	c := dial()
	var seen []Frame
	p.Set(func(f Frame) Verdict { seen = append(seen, f); return Pass }) // one connection: request and answer take turns
	if n, err := ask(c, 7, 1); n != 48 || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
	if len(seen) != 2 || seen[0] != (Frame{7, false, 10}) || seen[1] != (Frame{7, true, 44}) {
		t.Errorf("saw %+v", seen)
	}
	for verdict, want := range map[Verdict]int{Cut: 0, CutHalf: 24} {
		p.Set(func(f Frame) Verdict {
			if f.Key == 8 && f.Answer {
				return verdict
			}
			return Pass
		})
		c := dial()
		if _, err := ask(c, 7, 2); err != nil {
			t.Fatal(err)
		}
		if n, err := ask(c, 8, 3); n > want || err == nil || errors.Is(err, io.EOF) && verdict == Cut {
			t.Errorf("verdict %d: %d bytes, %v", verdict, n, err)
		}
	}
	p.Set(func(Frame) Verdict { return Swallow })
	c = dial()
	if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	var late net.Error
	if n, err := ask(c, 7, 4); n != 0 || !errors.As(err, &late) || !late.Timeout() {
		t.Errorf("swallowed: %d bytes, %v", n, err)
	}
	p.Set(nil)
	c = dial()
	if _, err := ask(c, 7, 5); err != nil {
		t.Fatal(err)
	}
	p.Unplug()
	if _, err := ask(c, 7, 6); err == nil {
		t.Error("a connection outlives Unplug")
	}
	if c, err := net.Dial("tcp", p.Addr()); err == nil { // or it is reset already
		if _, err := ask(c, 7, 7); err == nil {
			t.Error("a new connection is served while unplugged")
		}
		c.Close()
	}
	p.Plug()
	if _, err := ask(dial(), 7, 8); err != nil {
		t.Errorf("after Plug: %v", err)
	}
}
