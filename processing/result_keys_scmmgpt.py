"""Names of the columns and matrices that hold results in an AnnData."""


class ResultKeys:
    """Keys of what is written under a name; the name itself is the key in `uns`.

    Examples
    --------
    >>> ResultKeys("mine").cell_type
    'mine_cell_type'
    """

    def __init__(self, name: str = "scmmgpt"):
        self.name = name
        # obs
        self.cell_type = self.of("cell_type")
        self.term_id = self.of("cell_type_ontology_term_id")
        self.confidence = self.of("confidence")
        self.second_choice = self.of("second_choice")
        self.candidates = self.of("candidates")
        self.protein_conflict = self.of("protein_conflict")
        self.description = self.of("description")
        # obsm
        self.embedding = f"X_{name}"
        self.choice_probability = self.of("choice_probability")

    def of(self, result: str) -> str:
        """The key of a result, by its name in answers that are no AnnData."""
        return f"{self.name}_{result}"
