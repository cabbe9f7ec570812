package main

import "strings"

// Of a GenerationChunk or a GenerationResult, what is used here.
type event struct {
	SubmitID   string `json:"submit_id"`
	Epoch      int    `json:"epoch"`
	Attempt    int    `json:"attempt"`
	Seq        int    `json:"seq"`
	FirstToken int    `json:"first_token"`
	Text       string `json:"text"`

	FinishReason string                          `json:"finish_reason"`
	Error        *struct{ Code, Message string } `json:"error"`
}

// An answer is put together from its chunks. They may come twice, and from two workers at once when
// one takes over from the other: within a run seq orders them, and a run of a higher (epoch,
// attempt) replaces what the one before said from its own first token on.
type answer struct {
	epoch, attempt int
	next           int           // the seq that goes on
	kept           []event       // in order, without a gap
	early          map[int]event // those behind a gap
}

func (a *answer) add(c event) {
	if c.Epoch < a.epoch || c.Epoch == a.epoch && c.Attempt < a.attempt {
		return // of a worker that does not know yet that it was replaced
	}
	if c.Epoch != a.epoch || c.Attempt != a.attempt || a.early == nil {
		a.epoch, a.attempt, a.next, a.early = c.Epoch, c.Attempt, 0, map[int]event{}
	}
	a.early[c.Seq] = c
	for c, here := a.early[a.next]; here; c, here = a.early[a.next] {
		if a.next == 0 {
			for n := len(a.kept); n > 0 && a.kept[n-1].FirstToken >= c.FirstToken; n-- {
				a.kept = a.kept[:n-1]
			}
		}
		a.kept = append(a.kept, c)
		a.next++
	}
}

func (a *answer) text() string {
	var text strings.Builder
	for _, c := range a.kept {
		text.WriteString(c.Text)
	}
	return text.String()
}
