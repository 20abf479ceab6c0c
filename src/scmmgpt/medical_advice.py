"""Which questions want what only a physician may answer.

Research speaks of treatments, doses and patients, too: only who is to be told what to do, or what somebody has, is asked.
"""

from __future__ import annotations

import re

NO_ADVICE = "I cannot give medical advice: I describe cells for research. Please ask a physician."

_CURES = r"(?:drugs?|treatments?|therap\w*|chemo\w*|medicines?|medications?|doses?|dosages?|pills?|surgery|radiation|vaccin\w*)"
_PERSON = r"(?:i|me|we|us|he|him|she|her|they|(?:the|this|that|a|my|our) patients?|my \w+)"
_ILLNESS = (
    r"(?:disease|illness|cancer|symptoms?|health|tumou?r|lupus|diabetes|asthma|hiv|covid\S*|infection|pain|"
    r"\w+(?:itis|osis|emia|aemia|oma|pathy))"
)
_OF_RESEARCH = (
    r"(?!\s+(?:cells?|samples?|data\w*|biops\w+|cohorts?|model|mice|mouse|tissues?|sections?|cultures?|lines?))"
)
_ADVICE = re.compile(
    "|".join(
        (
            r"\b(?:diagnose|diagnosis for|prognosis|prescri\w*|medical advice|(?:see|ask) a (?:doctor|physician))\b",
            # What should somebody take?
            rf"\b(?:recommend|suggest|should {_PERSON})\b[^.?!]*\b{_CURES}\b",
            rf"\b{_CURES}\b[^.?!]*\b(?:recommend|suggest|should {_PERSON})\b",
            rf"\b{_CURES}\b[^.?!]*\b(?:for|help|cure) (?:me|us|him|her|(?:this|the|my|our) patient)\b",
            r"\bshould (?:i|we) (?:take|worry)\b",
            # How is it cured?
            rf"\b(?:how|can|should|could|do) (?:\w+ )?{_PERSON} (?:treat|cure|heal)\b(?! (?:\w+ )?(?:cells?|cultures?|samples?|mice))",
            r"\b(?:start|stop|skip|increase|reduce|continue) (?:taking )?my \w+",
            # What does somebody have?
            rf"\bmy (?:\w+ )?{_ILLNESS}\b{_OF_RESEARCH}",
            r"\bmy (?:results?|medicines?|medications?|pills?|doctor)\b",
            r"\b(?:do i|does (?:he|she|(?:the|this|my|our) patient)) have\b|\bam i (?:ill|sick|healthy)\b",
            rf"\b(?:mean|means|say|says|show|shows|tell|suggest|suggests|if|whether)\b (?:that )?(?:i|he|she|{_PERSON}) (?:have|has|am|is)\b",
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
