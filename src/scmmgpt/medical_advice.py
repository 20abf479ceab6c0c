"""Which questions want what only a physician may answer.

Research speaks of treatments, doses and patients, too: only who is to be told what to do, or what somebody has, is asked.
"""

from __future__ import annotations

import re

NO_ADVICE = "I cannot give medical advice: I describe cells for research. Please ask a physician."

_CURES = r"(?:drugs?|treatments?|therap\w*|chemo\w*|medicines?|medications?|doses?|dosages?|pills?|surgery|radiation)"
_PATIENT = r"(?:(?:the|this|that|a|my|our) patients?|my (?:\w+ )?(?:mother|father|son|daughter|wife|husband|child|sister|brother))"
_PERSON = rf"(?:i|me|we|us|he|him|she|her|they|{_PATIENT})"
_ILLNESS = (
    r"(?:(?:an? )?(?:\w+ )?(?:disease|illness|cancer|symptoms?|tumou?r|lupus|diabetes|asthma|hiv|covid\S*|infection|pain|"
    r"\w+(?:itis|emia|aemia|oma|pathy|sclerosis|fibrosis|cirrhosis)))"
)
_OF_RESEARCH = r"(?!\s+(?:cells?|samples?|data\w*|biops\w+|cohorts?|model|mice|mouse|tissues?|sections?|cultures?|lines?|is\b|are\b))"
_ADVICE = re.compile(
    "|".join(
        (
            r"\b(?:diagnose|diagnosis for|prognosis|prescri\w*|medication|medical advice|(?:see|ask) a (?:doctor|physician))\b",
            # What should somebody take?
            rf"\b(?:recommend|do you suggest|should {_PERSON})\b[^.?!]*\b{_CURES}\b",
            rf"\b{_CURES}\b[^.?!]*\b(?:recommend|do you suggest|should {_PERSON})\b",
            rf"\b{_CURES}\b[^.?!]*\b(?:for|help|cure) (?:me|us|him|her|{_PATIENT})\b",
            rf"\bdo(?:es)? {_PERSON} need\b[^.?!]*\b{_CURES}\b",
            r"\bshould (?:i|we) (?:take|worry)\b",
            # How is it cured?
            rf"\b(?:treat|cure|heal) (?:{_PATIENT}|him\b|her\b|me\b|(?:my |the |this )?{_ILLNESS}{_OF_RESEARCH})",
            rf"\b(?:start|stop|skip|increase|reduce|continue) (?:taking \w+|my {_CURES})\b",
            # What does somebody have?
            rf"\bmy {_ILLNESS}\b{_OF_RESEARCH}",
            r"\bmy (?:results?|medicines?|medications?|pills?|doctor|health)\b",
            rf"\b(?:do i|does (?:he|she|{_PATIENT})) have\b|\bam i (?:ill|sick|healthy)\b",
            rf"\b{_PERSON} (?:have|has) (?:got )?{_ILLNESS}\b{_OF_RESEARCH}",
        )
    ),
    re.IGNORECASE,
)


def asks_for_advice(question: str) -> bool:
    """Whether a question wants what only a physician may answer.

    Examples
    --------
    >>> asks_for_advice("How should I treat my lupus?"), asks_for_advice("Which cells respond to the treatment?")
    (True, False)
    """
    return bool(_ADVICE.search(question))
