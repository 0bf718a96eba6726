package main

import (
	"fmt"
	"strings"
	"time"
)

// level is how bad a verdict is; the page gives each a shape and a colour.
type level string

const (
	levelWell      level = "well"
	levelBusy      level = "busy"      // on its way: nothing to do
	levelAttention level = "attention" // works, and a person should look
	levelTrouble   level = "trouble"   // does not work
)

// verdict says in words how the sidecar is: the first line of `sidecar status`,
// and of the page.
type verdict struct {
	Word     string     `json:"word"`     // such as WAITING FOR KAFKA
	Sentence string     `json:"sentence"` // what follows it; may be empty
	Level    level      `json:"level"`
	Since    *time.Time `json:"since,omitempty"` // when the word was first true; left out where nobody has watched
	Why      string     `json:"why,omitempty"`   // unless well
	Do       []step     `json:"do,omitempty"`    // unless well
}

// step is one thing to do.
type step struct {
	Text    string `json:"text"`
	Command string `json:"command,omitempty"` // to be typed as it stands
}

// String is the verdict as one line.
func (v verdict) String() string {
	if v.Sentence == "" {
		return v.Word
	}
	return v.Word + ": " + v.Sentence
}

// verdict judges the report. The order is that of the table in docs/OPERATIONS.md.
func (r statusReport) verdict() verdict {
	socket, dir := " --socket "+quoteShell(r.Socket), " --data-dir "+quoteShell(r.DataDir)
	parked := step{"Look at the parked results, remove the cause, then retry or purge each.", "sidecar outbox list --state parked" + socket}
	switch {
	case r.Outbox.Trouble != "":
		return verdict{Word: "STOPPED", Sentence: r.Outbox.Trouble, Level: levelTrouble,
			Why: "The outbox cannot be trusted or written: nothing is accepted, and of a damaged one nothing is published.",
			Do: []step{
				{"End the sidecar and copy its data directory. Then check the file.", "sidecar outbox check" + dir},
				{"If it is damaged, save what can be read into a new directory.", "sidecar outbox recover" + dir + " --to NEWDIR"},
			}}
	case r.Ending:
		return verdict{Word: "ENDING", Sentence: fmt.Sprintf("%d results are still pending", r.Outbox.PendingRows), Level: levelBusy,
			Why: "It was asked to end and publishes what is left; what remains stays in the data directory.",
			Do:  []step{{Text: "Nothing: it ends by itself. The next start on the same data directory publishes the rest."}}}
	case r.Outbox.Full:
		do := []step{{Text: "Kafka takes results: see that what is pending gets less."}}
		if r.Publisher.State != "publishing" {
			do[0].Text = "Kafka takes no results; that comes first: repair what the last error names."
		}
		if r.Outbox.ParkedRows > 0 {
			do = append(do, parked)
		}
		return verdict{Word: "FULL", Sentence: "results are refused (507) until some are published or purged", Level: levelTrouble, Why: r.Outbox.fullness,
			Do: append(do, step{Text: "Or give it more room: a larger volume, or higher --max-rows and --max-bytes, and a restart."})}
	case r.Publisher.State == "stopped":
		return verdict{Word: "NOT PUBLISHING", Sentence: r.Publisher.LastError, Level: levelTrouble,
			Why: "Results are accepted and kept, and none is published.",
			Do: []step{
				{Text: "Find the other sidecar that runs on a copy of " + r.DataDir + ", and end one of the two."},
				{"If this one is ended, publish what it still holds, with the --topic and --kafka flags that it ran with.",
					"sidecar outbox drain --exit-when-empty" + dir + " --brokers " + quoteShell(strings.Join(r.Brokers, ","))},
			}}
	case r.Publisher.State != "publishing":
		why := r.Publisher.LastError
		if why == "" {
			why = "It has not reached a broker yet."
		}
		return verdict{Word: "WAITING FOR KAFKA", Sentence: "results are accepted and kept", Level: levelAttention, Why: why,
			Do: []step{
				{Text: "Repair what this names: the broker, its address, the login, or a right that is missing. It tries again by itself, at least every 10 s."},
			}}
	case r.Outbox.ParkedRows > 0:
		return verdict{Word: "PUBLISHING, with parked results", Sentence: fmt.Sprintf("Kafka refuses %d for good: sidecar outbox list --state parked", r.Outbox.ParkedRows), Level: levelAttention,
			Why: "They wait for a person; all others go on.",
			Do:  []step{parked}}
	case r.Outbox.PendingRows > 0:
		return verdict{Word: "PUBLISHING", Level: levelBusy,
			Why: "Results are on their way to Kafka.",
			Do:  []step{{Text: "Nothing, unless the age of the oldest grows: a broker that has just gone away shows after some 10 s."}}}
	default:
		return verdict{Word: "WELL", Sentence: "everything is published", Level: levelWell}
	}
}

// quoteShell writes text as one word of a POSIX shell.
func quoteShell(text string) string {
	plain := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("/._-:,=@+", c)
	}
	if text != "" && strings.IndexFunc(text, func(c rune) bool { return !plain(c) }) < 0 {
		return text
	}
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}
