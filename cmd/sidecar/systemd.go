package main

import (
	"context"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// statusInterval is how often systemd hears the verdict, where it asks for no watchdog.
const statusInterval = 5 * time.Second

// tellSystemd tells the service manager (sd_notify(3)) that the socket is open,
// then in words how things are, for as long as the loops live that /healthz looks
// at: a watchdog that hears nothing restarts us. Without $NOTIFY_SOCKET it does
// nothing. Nobody waits for its end: a manager that does not read would block it.
func (s *sidecar) tellSystemd(ctx context.Context) {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		s.log.Warn("systemd's watchdog hears nothing", "error", err)
	}
	interval := statusInterval
	if watchdog > 0 {
		interval = watchdog / 3
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for message := daemon.SdNotifyReady; ; message = s.message(ctx) {
		told, err := daemon.SdNotify(false, message)
		if err != nil {
			s.log.Warn("systemd does not hear how things are", "error", err)
		}
		if !told && err == nil {
			return // there is none
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *sidecar) message(ctx context.Context) string {
	lines := "STATUS=" + s.report(ctx).Verdict.String()
	if s.outbox.Alive() == nil {
		lines += "\n" + daemon.SdNotifyWatchdog
	}
	if s.ending.Load() {
		lines += "\n" + daemon.SdNotifyStopping
	}
	return lines
}
