"""Names of the columns and matrices that hold results in an AnnData."""

from dataclasses import dataclass

DEFAULT_NAME = "scmmgpt"


@dataclass(frozen=True)
class ResultKeys:
    """Keys of what is written under a name; the name itself is the key in `uns`.

    Examples
    --------
    >>> ResultKeys("mine").cell_type
    'mine_cell_type'
    """

    name: str = DEFAULT_NAME

    @property
    def embedding(self) -> str:
        """In `obsm`: one vector per cell."""
        return f"X_{self.name}"

    @property
    def cell_type(self) -> str:
        """In `obs`, as all that follow."""
        return f"{self.name}_cell_type"

    @property
    def term_id(self) -> str:
        """The Cell Ontology id of the cell type."""
        return f"{self.name}_cell_type_ontology_term_id"

    @property
    def confidence(self) -> str:
        """Of the cell type."""
        return f"{self.name}_confidence"

    @property
    def second_choice(self) -> str:
        """The next best cell type."""
        return f"{self.name}_second_choice"

    @property
    def description(self) -> str:
        """What the language model says about the cell."""
        return f"{self.name}_description"

    @property
    def choice_probability(self) -> str:
        """In `obsm`: of each answer that the description could choose."""
        return f"{self.name}_choice_probability"
